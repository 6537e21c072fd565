"""How confident a mixture of a classifier and ignorance can get in a ball, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uncertainty_est.densities.spherical_mixture import SphericalMixture

_HALVINGS = 66  # of [0, 1e4]: what is left is below float64's resolution of radii near 1


class RatioBound:
    r"""Upper bound, in balls, of the ratio :math:`p(x \mid \text{in}) / (\lambda\, p(x \mid \text{out}))` of densities.

    .. math:: \ln b(R) = \operatorname{lse}_k \bigl[ \text{in}_k(\max(d_k - R, 0)) \bigr]
        - \operatorname{lse}_l \bigl[ \text{out}_l(\delta_l + R) \bigr] - \ln \lambda

    where :math:`d_k, \delta_l` are the distances of the ball's centre z from the components' means and
    :math:`\text{in}_k(d)` is the log of weight times density of a component at distance d. By the triangle inequality
    no point of the ball is nearer to a mean than :math:`d_k - R`, nor farther than :math:`\delta_l + R`. The bound does
    not fall with R.

    References:
        Meinke and Hein, arXiv:1909.12180, Theorem 3.1 and its corollary.

    Args:
        inside: numerator.
        outside: denominator; ``None`` for one that is 1 everywhere.
        z: ``[B, D]`` centres, in the space of the mixtures.
        log_scale: subtracted throughout, :math:`\ln \lambda` and, without `outside`, what turns densities of z into
            those of x.
    """

    def __init__(
        self, inside: SphericalMixture, outside: SphericalMixture | None, z: Tensor, log_scale: Tensor | float = 0.0
    ) -> None:
        self.inside = inside
        self.outside = outside
        self.log_scale = log_scale
        self.from_inside = inside.squared_distances(z).sqrt()
        self.from_outside = None if outside is None else outside.squared_distances(z).sqrt()

    def __call__(self, radius: Tensor) -> Tensor:
        """``ln b(R)``, ``[B]`` float64, for ``radius: [B]``, not negative."""
        r = radius.double().unsqueeze(-1)
        bound = self.inside.joint((self.from_inside - r).clamp(min=0).square()).logsumexp(-1)
        if self.outside is not None and self.from_outside is not None:
            bound = bound - self.outside.joint((self.from_outside + r).square()).logsumexp(-1)
        return bound - self.log_scale

    @torch.no_grad()
    def radius(self, log_target: float, largest: float = 1e4) -> Tensor:
        """The largest R in [0, `largest`] with ``ln b(R) <= log_target``, ``[B]`` float64; 0 where there is none.

        By bisection, of all balls at once: 66 halvings; what is returned is on the side where the bound holds.
        """
        low = self.from_inside.new_zeros(len(self.from_inside))
        high = torch.full_like(low, largest)
        whole = self(high) <= log_target
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            holds = self(middle) <= log_target
            low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
        return torch.where(whole, largest, low)


def confidence_bound(log_ratio: Tensor, num_classes: int) -> Tensor:
    r""":math:`\tfrac1C \cdot \tfrac{1 + C b}{1 + b}`, in [1/C, 1], of ``log_ratio = ln b`` of any shape.

    No class is more probable than that where the ratio of the densities is at most b.

    References:
        Meinke and Hein, arXiv:1909.12180, Theorem 3.1.
    """
    return 1 / num_classes + (1 - 1 / num_classes) * log_ratio.sigmoid()


def log_target(factor: float, num_classes: int) -> float:
    r""":math:`\ln \tfrac{f - 1}{C - f}`, the ratio at which :func:`confidence_bound` is ``f / C``.

    Raises:
        ValueError: f outside (1, C).
    """
    if not 1 < factor < num_classes:
        raise ValueError(f"factor must lie between 1 and the number of classes {num_classes}, got {factor}")
    return math.log((factor - 1) / (num_classes - factor))
