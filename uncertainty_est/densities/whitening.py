"""Squared Mahalanobis distances by float32 products, where these lose nothing that a score would show."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest relative difference from float64 that is accepted, and the part of it that the trial may show.
TOLERANCE = 1e-6
_MARGIN = 4
_DRAWS = 16
# Of a feature's standard deviation, what at least is not explained by the features before it: below, terms cancel.
_MIN_UNEXPLAINED = 1 / 32


class Whitening:
    r"""Factors :math:`L_c^{-1}` in float32, for products with differences that were taken in float64.

    A float32 product rounds each term to 6e-8 of itself. That is 6e-8 of the distance, too, unless terms cancel: where
    a covariance is nearly singular, a short distance along its long axes is a difference of large terms. So the factors
    are tried on points of the distributions, far outside them, along their longest axes and around the means of the
    other classes; :attr:`is_exact` says whether all agree with float64 to a quarter of 1e-6.

    Args:
        mean: ``[C, D]`` float64.
        scale_tril: ``[C, D, D]`` float64 Cholesky factors.
    """

    def __init__(self, mean: Tensor, scale_tril: Tensor) -> None:
        unexplained = scale_tril.diagonal(dim1=-2, dim2=-1) / scale_tril.norm(dim=-1)
        self.is_exact = bool((unexplained >= _MIN_UNEXPLAINED).all())
        if not self.is_exact:
            return
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        inverse = torch.linalg.solve_triangular(scale_tril, identity.expand_as(scale_tril), upper=False)
        self.factors = inverse.float()
        trial = _trial(mean, scale_tril)
        exact = (trial @ inverse.mT).square().sum(-1)
        self.is_exact = bool(((self.distances(trial, 0) - exact).abs() <= TOLERANCE / _MARGIN * exact).all())

    def distances(self, centred: Tensor, first: int) -> Tensor:
        """Squared lengths ``[C', B]`` float64 of whitened differences.

        Args:
            centred: ``[C', B, D]`` float64, differences from the means of C' classes.
            first: the first of these classes.
        """
        factors = self.factors[first : first + len(centred)]
        # Float32 ends at 3e38: rows are scaled to a largest entry of 1, and squares in float64.
        largest = centred.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        with torch.autocast(centred.device.type, enabled=False):
            whitened = (centred / largest).float() @ factors.mT
        return whitened.double().square().sum(-1) * largest.squeeze(-1).square()


def is_float32_exact() -> bool:
    """Whether float32 products are taken in float32, and not in fewer digits as a GPU's TF32 does."""
    return torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32


def _trial(mean: Tensor, scale_tril: Tensor) -> Tensor:
    """Differences ``[C, P, D]`` float64 from the means of the classes, where rounding would show."""
    num_classes, dim = mean.shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_classes, _DRAWS, dim, generator=generator, dtype=mean.dtype).to(mean.device)
    inside = noise @ scale_tril.mT
    axes = noise
    for _ in range(8):  # towards the longest axes, by powers of the covariance
        axes = axes @ scale_tril @ scale_tril.mT
        axes = axes / axes.norm(dim=-1, keepdim=True)
    others = inside + (mean.roll(1, 0) - mean).unsqueeze(1)
    return torch.cat([inside, 100 * inside, noise, axes, others], dim=1)
