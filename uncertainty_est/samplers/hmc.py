"""Hamiltonian Monte Carlo, and an estimate of a generator's entropy gradient by it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from uncertainty_est.samplers.vera import Draw, LatentGenerator


def hmc_step(
    log_density: Callable[[Tensor], Tensor],
    h: Tensor,
    step_size: Tensor,
    leapfrog_steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One transition of every chain, which leaves :math:`p(h) \propto e^{\text{log\_density}(h)}` as it is.

    Momenta are standard normal. Every chain is accepted or not by itself; one that left all numbers is not.

    References:
        Neal, arXiv:1206.1901, Section 3.

    Args:
        log_density: ``[B, D] -> [B]``, row by row.
        h: states of the chains, ``[B, D]``.
        step_size: of the leapfrog integration, a scalar.
        leapfrog_steps: how many.
        generator: of random numbers, the global one if not given.

    Returns:
        New states ``[B, D]`` without gradients, and the probabilities ``[B]`` with which they were accepted.
    """

    def value_and_gradient(at: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            value = log_density(at)
            return value.detach(), torch.autograd.grad(value.sum(), at)[0]

    momentum = torch.randn(h.shape, generator=generator, device=h.device, dtype=h.dtype)
    uniform = torch.rand(len(h), generator=generator, device=h.device, dtype=h.dtype)
    value, gradient = value_and_gradient(h)
    before = value - momentum.square().sum(1) / 2
    end = h.detach()
    for _ in range(leapfrog_steps):
        momentum = momentum + step_size / 2 * gradient
        end = end + step_size * momentum
        value, gradient = value_and_gradient(end)
        momentum = momentum + step_size / 2 * gradient
    after = value - momentum.square().sum(1) / 2
    probability = (after - before).exp().clamp(max=1).nan_to_num(nan=0.0)
    return torch.where((uniform < probability).unsqueeze(1), end, h.detach()), probability


class HMCSampling(nn.Module):
    r"""Estimate of :math:`c(x) = \mathbb E_{q(h' \mid x)} [(x - g(h')) / \sigma^2]` by chains in the posterior.

    Chains start from the h that made x, which is a sample of the posterior already; what they need time for is to
    forget it. c goes into :math:`\mathbb E[c^\top \partial x / \partial \phi]`, whose second factor depends on that h
    as well, so that chains that hardly move bias the gradient towards 0. The step size is adapted by a factor after
    each transition, towards the acceptance that is aimed at.

    References:
        Grathwohl et al., arXiv:2010.04230, Section 3.1 and its appendix.

    Args:
        latent_dim: length D of h; the step size starts from 1 / D.
        burn_in: transitions before samples are taken.
        num_samples: transitions after it, whose states are averaged over.
        leapfrog_steps: steps of a transition.
        target_acceptance: mean acceptance that the step size is adapted to.
        adaptation: relative change of the step size after each transition; 0 leaves it alone.

    Raises:
        ValueError: a number outside of its range.
    """

    def __init__(
        self,
        latent_dim: int,
        burn_in: int = 2,
        num_samples: int = 2,
        leapfrog_steps: int = 5,
        target_acceptance: float = 0.67,
        adaptation: float = 0.02,
    ) -> None:
        super().__init__()
        if burn_in < 0 or num_samples < 1 or leapfrog_steps < 1:
            raise ValueError(
                f"burn_in must be at least 0, num_samples and leapfrog_steps at least 1, got {burn_in}, {num_samples}"
                f" and {leapfrog_steps}"
            )
        if not 0 < target_acceptance < 1 or adaptation < 0:
            raise ValueError(
                f"target_acceptance must be in (0, 1) and adaptation at least 0, got {target_acceptance} and"
                f" {adaptation}"
            )
        self.burn_in = burn_in
        self.num_samples = num_samples
        self.leapfrog_steps = leapfrog_steps
        self.target_acceptance = target_acceptance
        self.adaptation = adaptation
        self.register_buffer("step_size", torch.tensor(1.0 / latent_dim))
        self.step_size: Tensor

    @torch.no_grad()
    def forward(
        self, q: LatentGenerator, draw: Draw, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """c of samples of q, ``[B, *data_shape]`` without gradients.

        Returns:
            c, and the mean ``acceptance`` in [0, 1] and the ``step_size`` after this call.
        """
        x, h = draw.x.detach(), draw.h
        total, acceptances = torch.zeros_like(x), []
        for i in range(self.burn_in + self.num_samples):
            h, probability = hmc_step(
                lambda at: q.log_joint(x, at, draw.statistics), h, self.step_size, self.leapfrog_steps, generator
            )
            acceptances.append(probability.mean())
            larger = torch.where(acceptances[-1] > self.target_acceptance, 1 + self.adaptation, 1 - self.adaptation)
            self.step_size.mul_(larger)
            if i >= self.burn_in:
                total += x - q.decode(h, draw.statistics)
        c = total / self.num_samples * (-2 * q.log_sigma).exp()
        return c, {"acceptance": torch.stack(acceptances).mean(), "step_size": self.step_size.clone()}
