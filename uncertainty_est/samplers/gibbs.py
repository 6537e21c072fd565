"""Gibbs sampling with gradients: Metropolis-Hastings on categories, whose proposals a gradient suggests."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.samplers.sgld import Chain, LogDensity, value_and_gradient


class GibbsWithGradients:
    r"""Changes one site of a one-hot batch at a time; exact for :math:`e^F`, whatever the gradient is worth.

    Of all changes of one site to another category, one is drawn with :math:`q(i \mid x) \propto e^{d_i / 2}`, where
    :math:`d_{lv} = \partial_{lv} F - \sum_u x_{lu} \partial_{lu} F` estimates the gain of F to first order. It is
    accepted with probability :math:`\min(1, e^{F(x') - F(x)} q(\bar\imath \mid x') / q(i \mid x))`, where
    :math:`\bar\imath` puts the old category back.

    References:
        Grathwohl et al., arXiv:2102.04509, Algorithm 1 and Eq. 5.

    Args:
        steps: proposals of one call.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, steps: int = 20) -> None:
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        self.steps = steps

    @torch.no_grad()
    def __call__(self, log_density: LogDensity, x: Tensor, generator: torch.Generator | None = None) -> Chain:
        """Run the chains from ``x: [B, L, V]``, one-hot along the last axis of at least two categories.

        Args:
            log_density: F; evaluated once before the first step and once in every step, and differentiated as often.
            x: initial states; stays as it is.
            generator: on the device of `x`; PyTorch's own if not given.

        Returns:
            The chains, with the share of proposals accepted, ``acceptance``, over all steps.
        """
        categories = x.shape[-1]
        rows = torch.arange(len(x), device=x.device)
        value, gradient = value_and_gradient(log_density, x)
        log_q = _log_proposal(x, gradient)
        accepted = torch.zeros((), device=x.device)
        for _ in range(self.steps):
            # The least of exponential variables with rates q is the i-th with probability q_i.
            race = torch.empty_like(log_q).exponential_(generator=generator).log_()
            move = (log_q - race).argmax(dim=1)
            site, new = move // categories, move % categories
            back = site * categories + x[rows, site].argmax(dim=1)
            proposed = x.clone()
            proposed[rows, site] = F.one_hot(new, categories).to(x.dtype)
            new_value, new_gradient = value_and_gradient(log_density, proposed)
            new_log_q = _log_proposal(proposed, new_gradient)
            log_ratio = new_value - value + new_log_q[rows, back] - log_q[rows, move]
            uniform = torch.rand(len(x), generator=generator, device=x.device)
            accept = uniform.log() < log_ratio
            x = torch.where(accept.view(-1, 1, 1), proposed, x)
            value = torch.where(accept, new_value, value)
            log_q = torch.where(accept.unsqueeze(1), new_log_q, log_q)
            accepted += accept.float().mean()
        return Chain(x.detach().clone(), {"acceptance": accepted / self.steps} if self.steps else {})


def _log_proposal(x: Tensor, gradient: Tensor) -> Tensor:
    """Logarithms of q, ``[B, L * V]``; a site's current category is never proposed."""
    gain = gradient - (x * gradient).sum(-1, keepdim=True)
    return (gain / 2).masked_fill(x > 0.5, -torch.inf).flatten(1).log_softmax(dim=1)
