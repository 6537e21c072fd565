"""Langevin dynamics: noisy ascent of a log-density, for a whole batch of chains at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Log-density [B], up to a constant, of a batch [B, ...]; each value depends on its own input alone.
LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """Where a batch of chains has come to.

    Attributes:
        x: their last states, without a gradient history.
        statistics: name to scalar, on the chains' device.
    """

    x: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


def value_and_gradient(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`F(x)`, ``[B]``, and :math:`\nabla_x F(x)`, shaped like `x`, from one pass forward and one back.

    Works whatever the grad mode, leaves it as it was, and touches no parameter's gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # The copy of a tensor that was made in inference mode can have a gradient, the tensor itself cannot.
        x = x.detach().clone().requires_grad_()
        value = log_density(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


class SGLD:
    r"""Unadjusted Langevin chains :math:`x \leftarrow x + \eta \nabla_x F(x) + \sigma \varepsilon`, with normal noise.

    At :math:`\sigma = \sqrt{2 \eta}` they sample from :math:`e^F`, as far as the steps are small. Energy-based models
    are commonly trained with much less noise, which samples from :math:`e^{F/T}` with :math:`T = \sigma^2 / 2 \eta`.

    References:
        Welling and Teh, 2011. In energy-based models: Grathwohl et al., arXiv:1912.03263, Eq. 6.

    Args:
        steps: of one call.
        lr: step size :math:`\eta`.
        std: standard deviation :math:`\sigma` of the noise.
        clamp: ``(low, high)`` that every coordinate is held in after each step; not held if not given.

    Raises:
        ValueError: a negative number, or an empty interval.
    """

    def __init__(
        self, steps: int = 20, lr: float = 1.0, std: float = 0.01, clamp: Sequence[float] | None = None
    ) -> None:
        if steps < 0 or lr < 0 or std < 0:
            raise ValueError(f"steps, lr and std must be at least 0, got {steps}, {lr} and {std}")
        if clamp is not None and not (len(clamp) == 2 and clamp[0] < clamp[1]):
            raise ValueError(f"clamp must be [low, high] with low < high, got {list(clamp)}")
        self.steps = steps
        self.lr = lr
        self.std = std
        self.clamp = None if clamp is None else (float(clamp[0]), float(clamp[1]))

    def step(self, x: Tensor, gradient: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next states of chains at `x` with gradients `gradient`, both ``[B, ...]``."""
        x = x.add(gradient, alpha=self.lr)
        if self.std:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x.add_(noise, alpha=self.std)
        return x if self.clamp is None else x.clamp_(*self.clamp)

    def __call__(self, log_density: LogDensity, x: Tensor, generator: torch.Generator | None = None) -> Chain:
        """Run the chains from ``x: [B, ...]``, which stays as it is.

        Args:
            log_density: F; evaluated once in every step, and differentiated once.
            x: initial states.
            generator: of the noise, on the device of `x`; PyTorch's own if not given.

        Returns:
            The chains, with means over the batch from the last step: ``gradient_norm``, the length of the gradient
            that it followed, and ``step_length``, the way that it went. No statistics without steps.
        """
        statistics = {}
        with torch.no_grad():
            x = x.detach().clone()
            for i in range(self.steps):
                _, gradient = value_and_gradient(log_density, x)
                before, x = x, self.step(x, gradient, generator)
                if i + 1 == self.steps:
                    statistics = {"gradient_norm": _length(gradient), "step_length": _length(x - before)}
        return Chain(x, statistics)


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1).mean()
