"""The metric in which data have unit variance in every direction."""

from __future__ import annotations

import torch
from torch import Tensor

from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.densities.gaussian import GaussianStatistics
from uncertainty_est.errors import DataError

WHITENINGS = ("covariance", "singular", "none")
# No direction is stretched as if its value of s were below this share of the largest.
_SMALLEST_SHARE = 1e-6
_ROWS = 8192  # of data in double precision at a time


class PCAMetric(Fitted):
    r"""Distance after a rotation to principal axes and a division by their widths, with the map itself.

    .. math:: d(x, y) = \lVert W x - W y \rVert_2, \quad W = \operatorname{diag}(s)^{-1/2} V^\top

    V holds the eigenvectors of the data's covariance C and s, by `whitening`:

    * ``covariance``: its eigenvalues, :math:`d(x, y) = \lVert C^{-1/2} (x - y) \rVert`, the paper's metric;
    * ``singular``: the singular values of the centred data, :math:`\sqrt{(N - 1) \lambda_j}`, which the published
      checkpoints were trained with;
    * ``none``: W is the identity and nothing needs to be fitted.

    Values of s below 1e-6 of the largest are raised to that. It is a metric: the triangle inequality holds. All is in
    float64, differentiable in the inputs, and in the state whatever cast reaches the module.

    References:
        Meinke and Hein, arXiv:1909.12180, section 4 (the metric of the mixtures).

    Args:
        dim: D, the length of a flattened input.
        whitening: one of the three.

    Raises:
        ValueError: another whitening, or `dim` below 1.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, dim: int, whitening: str = "covariance") -> None:
        super().__init__()
        check_positive(dim=dim)
        if whitening not in WHITENINGS:
            raise ValueError(f"whitening must be one of {', '.join(WHITENINGS)}, got '{whitening}'")
        self.dim = dim
        self.whitening = whitening
        if whitening == "none":
            self.fitted.fill_(True)
            return
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("axes", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take mean, axes and widths from data ``x: [N, D]`` of any floating type; ``none`` takes nothing.

        Raises:
            DataError: fewer than 2 items, or all of them the same.
            ValueError: another shape, or values that are not finite.
        """
        if self.whitening == "none":
            return
        if len(x) < 2:
            raise DataError(f"the metric needs at least 2 training items, got {len(x)}; give more of them")
        statistics = GaussianStatistics(1, self.dim, device=self.mean.device)
        for part in x.split(_ROWS):
            statistics.update(part, part.new_zeros(len(part), dtype=torch.int64))
        eigenvalues, axes = torch.linalg.eigh(statistics.scatter[0] / (len(x) - 1))
        variances = eigenvalues.flip(0).clamp(min=0)
        s = variances if self.whitening == "covariance" else (variances * (len(x) - 1)).sqrt()
        if not s[0] > 0:
            raise DataError("the metric needs training items that differ, but all of them are the same")
        self.mean.copy_(statistics.mean[0])
        self.axes.copy_(axes.flip(1))
        self.scale.copy_(s.clamp(min=float(s[0]) * _SMALLEST_SHARE).sqrt())
        self.fitted.fill_(True)

    def whiten(self, x: Tensor) -> Tensor:
        r""":math:`z = W (x - \bar x)`, ``[B, D]`` float64, of ``x: [B, *data_shape]`` or ``[B, D]``.

        Distances do not see the data's mean :math:`\bar x`; without it, what is far from zero keeps its digits.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        flat = x.flatten(1).double()
        if self.whitening == "none":
            return flat
        self.require_fit()
        return (flat - self.mean) @ self.axes / self.scale

    def unwhiten(self, z: Tensor) -> Tensor:
        """The flattened input ``[B, D]`` float64 that :meth:`whiten` takes to ``z: [B, D]``."""
        if self.whitening == "none":
            return z.double()
        self.require_fit()
        return (z.double() * self.scale) @ self.axes.T + self.mean

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """``d(x, y)``, ``[B]`` float64, of two batches of one shape, ``[B, *data_shape]`` or ``[B, D]``."""
        return (self.whiten(x) - self.whiten(y)).norm(dim=-1)

    def half_log_det(self) -> Tensor:
        r""":math:`\tfrac12 \sum_j \ln s_j`, a scalar: ``log p(x) = log p(z) - half_log_det`` for densities of z."""
        return self.fitted.new_zeros((), dtype=torch.float64) if self.whitening == "none" else self.scale.log().sum()
