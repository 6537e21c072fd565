"""Distances and densities of Gaussians on features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics, TiedGaussians
from uncertainty_est.posthoc.base import PerturbedScore, PosthocScore

# Column blocks of a triangular product: with 8 of them the product takes 9/16 of a full one's time.
_BLOCKS = 8


class NearestMean:
    r"""Squared Mahalanobis distance to the nearest mean, :math:`\min_c \| L^{-1} (z - \mu_c) \|^2`.

    Features are whitened by one triangular product in their own precision, about a centre that float32 holds exactly;
    the nearest mean is found by a second product, and the distance is then taken of the difference, so that nothing
    cancels.

    Args:
        density: fitted.
        precision: type of the features.
    """

    def __init__(self, density: TiedGaussians, precision: torch.dtype) -> None:
        factor, means = density.scale_tril, density.mean
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        upper = torch.linalg.solve_triangular(factor, identity, upper=False).T
        self._centre = means.mean(0).to(precision)
        white = (means - self._centre.double()) @ upper
        self._means = white.to(precision)
        self._columns = self._means.T.contiguous()
        self._half_squares = white.square().sum(-1).div(2).to(precision)
        edges = [round(len(factor) * k / _BLOCKS) for k in range(_BLOCKS + 1)]
        columns = zip(edges[:-1], edges[1:], strict=True)
        self._blocks = [upper[:end, start:end].to(precision, copy=True) for start, end in columns if start < end]

    def squared_distance(self, z: Tensor) -> Tensor:
        """``[B]`` float64, differentiable in ``z: [B, D]``."""
        centred = z.to(self._centre) - self._centre
        white = torch.cat([centred[:, : len(block)] @ block for block in self._blocks], dim=-1)
        with torch.no_grad():
            nearest = torch.addmm(self._half_squares, white, self._columns, alpha=-1).argmin(-1)
        distance = torch.linalg.vector_norm(white - self._means.index_select(0, nearest), dim=-1)
        return distance.double().square()


def statistics_of(features: Tensor, labels: Tensor, num_classes: int) -> GaussianStatistics:
    """Sufficient statistics of each class of ``features: [N, D]`` with ``labels: [N]``."""
    statistics = GaussianStatistics(num_classes, features.shape[-1], device=features.device)
    statistics.update(features, labels)
    return statistics


def fit_nearest(features: Tensor, labels: Tensor, num_classes: int, min_jitter: float) -> NearestMean:
    """Means of the classes and their tied covariance, of ``features: [N, D]`` with ``labels: [N]``.

    Raises:
        DataError: a class has no sample.
    """
    statistics = statistics_of(features, labels, num_classes)
    density = TiedGaussians(num_classes, features.shape[-1], min_jitter).to(features.device)
    density.fit(statistics)
    return NearestMean(density, features.dtype)


class Mahalanobis(PerturbedScore):
    r"""Negative squared distance to the nearest class, :math:`-\min_c (z - \mu_c)^\top \Sigma^{-1} (z - \mu_c)`.

    :math:`\Sigma` is the covariance about the means of the classes.

    References:
        Lee et al., arXiv:1807.03888, Eq. 1 to 3.

    Args:
        epsilon: length of a step on the input to a larger score, in pixels of [0, 1]; 0 for none.
        min_jitter: smallest number added to the covariance's diagonal.

    Raises:
        ValueError: a negative number.
    """

    name = "mahalanobis"
    title = "Mahalanobis, post-hoc"
    split = "train"

    def __init__(self, epsilon: float = 0.0, min_jitter: float = 0.0) -> None:
        super().__init__(epsilon)
        self.min_jitter = min_jitter
        self._classes: NearestMean | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        self._classes = fit_nearest(features, labels, logits.shape[-1], self.min_jitter)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.require(self._classes).squared_distance(features)


class RMD(PosthocScore):
    r"""Relative Mahalanobis distance, :math:`-\min_c M_c(z) + M_0(z)`, with one Gaussian of all data for :math:`M_0`.

    References:
        Ren et al., arXiv:2106.09022.

    Args:
        min_jitter: smallest number added to the covariances' diagonals.

    Raises:
        ValueError: a negative jitter.
    """

    name = "rmd"
    title = "Relative Mahalanobis"
    split = "train"

    def __init__(self, min_jitter: float = 0.0) -> None:
        self.min_jitter = min_jitter
        self._classes: NearestMean | None = None
        self._all: NearestMean | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        self._classes = fit_nearest(features, labels, logits.shape[-1], self.min_jitter)
        self._all = fit_nearest(features, torch.zeros_like(labels), 1, self.min_jitter)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        background = self.require(self._all).squared_distance(features)
        return background - self.require(self._classes).squared_distance(features)


class DDUDensity(PosthocScore):
    r"""Log-density of features under one Gaussian a class, :math:`\ln \sum_c \pi_c\, \mathcal N(z; \mu_c, \Sigma_c)`.

    References:
        Mukhoti et al., arXiv:2102.11582, Algorithm 1.

    Args:
        min_jitter: smallest number added to every covariance's diagonal.

    Raises:
        ValueError: a negative jitter.
    """

    name = "ddu"
    title = "DDU density"
    split = "train"

    def __init__(self, min_jitter: float = 0.0) -> None:
        self.min_jitter = min_jitter
        self._density: ClassGaussians | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        classes, dim = logits.shape[-1], features.shape[-1]
        density = ClassGaussians(classes, dim, self.min_jitter).to(features.device)
        density.fit(statistics_of(features, labels, classes))
        self._density = density

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        density = self.require(self._density)
        return (density.log_prob(features) + density.log_prior).logsumexp(-1)
