"""Invertible residual blocks: the identity plus a contraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.bijection import Bijection
from uncertainty_est.densities.residual_log_det import LogDet


class ContractiveLayers(Protocol):
    """Makes layers of operator norm at most `coeff`."""

    coeff: float

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
        """``[B, in_features] -> [B, out_features]``."""

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        input_size: tuple[int, int],
    ) -> nn.Conv2d:
        """``[B, in_channels, *input_size] -> [B, out_channels, ...]``."""


class LipSwish(nn.Module):
    r""":math:`\tfrac{x}{1.1} \operatorname{sigmoid}(\beta x)`, of slope at most 1, with a learnt :math:`\beta > 0`.

    References:
        Chen et al., arXiv:1906.02735, section 3.3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * (x * F.softplus(self.raw_beta)).sigmoid() / 1.1


# All have slopes of magnitude at most 1, and second derivatives, which the gradient of a log-determinant needs.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "lipswish": LipSwish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Contraction(nn.Sequential):
    r"""Layers of norm at most c with activations of slope at most 1, hence :math:`c^L`-Lipschitz for L layers.

    Attributes:
        lipschitz: :math:`c^L`.
    """

    def __init__(self, parts: Sequence[nn.Module], lipschitz: float) -> None:
        super().__init__(*parts)
        self.lipschitz = lipschitz


def contraction(
    shape: Sequence[int],
    widths: Sequence[int],
    layers: ContractiveLayers,
    activation: str = "elu",
    last_activation: bool = True,
) -> Contraction:
    """A contraction from `shape` to itself, of linear layers for a table ``(D,)`` or convolutions for ``(C, H, W)``.

    The first and the last convolution have kernels of 3x3, those between them of 1x1.

    Args:
        shape: of one input.
        widths: units or channels of each hidden layer.
        layers: makes the layers.
        activation: ``elu``, ``lipswish``, ``softplus`` or ``tanh``.
        last_activation: one after the last layer as well.

    Raises:
        ValueError: `layers` that do not contract, or an unknown activation.
    """
    coeff = getattr(layers, "coeff", math.inf)  # layers that know no bound have none
    if not 0 < coeff < 1:
        raise ValueError(f"layers must have a coeff below 1, for the blocks to be invertible, got {coeff}")
    if activation not in ACTIVATIONS:
        known = ", ".join(f"'{known}'" for known in ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, got '{activation}'")
    sizes = [shape[0], *widths, shape[0]]
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        if len(shape) == 1:
            parts.append(layers.linear(before, after))
        else:
            kernel = 3 if i in (0, len(widths)) else 1
            size = (shape[1], shape[2])
            parts.append(layers.conv(before, after, kernel, padding=kernel // 2, input_size=size))
        if last_activation or i < len(widths):
            parts.append(ACTIVATIONS[activation]())
    return Contraction(parts, coeff ** (len(widths) + 1))


class InvertibleResidual(Bijection):
    r""":math:`y = x + F(x)` with a contraction F, whose log-determinant is :math:`\ln \det(I + J_F)`.

    References:
        Behrmann et al., arXiv:1811.00995.

    Args:
        residual: F, from ``[B, *shape]`` to the same shape, with a Lipschitz constant below 1.
        log_det: finds or estimates the log-determinant.
        tolerance: of :meth:`inverse`, for numbers of magnitude 1.
        max_iterations: of :meth:`inverse`.
    """

    def __init__(
        self, residual: nn.Module, log_det: LogDet, tolerance: float = 1e-5, max_iterations: int = 500
    ) -> None:
        super().__init__()
        self.residual = residual
        self.log_det = log_det
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        # The log-determinant is made of derivatives, which scoring needs as well.
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            change = self.residual(x)
            log_det = self.log_det(change, x, differentiable)
            y = x + change
        return (y, log_det) if differentiable else (y.detach(), log_det.detach())

    def inverse(self, y: Tensor) -> Tensor:
        """The fixed point of :math:`x = y - F(x)`, in evaluation mode and without gradients.

        Raises:
            ArithmeticError: no convergence; the residual is no contraction.
        """
        with torch.no_grad():
            x, change = y, y
            for _ in range(self.max_iterations):
                before, x = x, y - self.residual(x)
                change = (x - before).abs() - self.tolerance * before.abs().clamp(min=1)
                if bool((change <= 0).all()):
                    return x
        raise ArithmeticError(f"a residual block found no inverse within {self.max_iterations} iterations")
