"""Class-conditional Gaussians with full covariances, fitted in one pass over the features."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, distributed

from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.densities.whitening import Whitening, is_float32_exact
from uncertainty_est.errors import DataError

log = logging.getLogger(__name__)

_JITTERS = tuple(10.0**k for k in range(-20, 0))
# Numbers in one temporary of `log_prob`: 32 MB in float64, however many classes and inputs there are.
_CHUNK = 2**22


class GaussianStatistics:
    r"""Streaming count, mean and centred scatter of the features of each class.

    The scatter is :math:`S_c = \sum_i (z_i - \mu_c)(z_i - \mu_c)^\top`.
    Two parts a, b of a class merge by

    .. math:: \mu = \mu_a + \tfrac{n_b}{n} \delta, \quad
        S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top, \quad \delta = \mu_b - \mu_a,

    which, unlike second moments about zero, does not cancel where the mean is large against the spread. Up to
    rounding, the result does not depend on how the samples were cut into batches or over processes.

    References:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        Stanford report STAN-CS-79-773, 1979.

    Attributes:
        count: ``[C]`` int64.
        mean: ``[C, D]`` float64.
        scatter: ``[C, D, D]`` float64.
    """

    def __init__(self, num_classes: int, dim: int, device: torch.device | str | None = None) -> None:
        self.count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.mean = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(num_classes, dim, dim, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, z: Tensor, y: Tensor) -> None:
        """Add features ``z: [B, D]`` of any floating type with labels ``y: [B]`` in ``0 … C-1``.

        Raises:
            ValueError: wrong shapes, features that are not finite, or labels out of range.
        """
        num_classes, dim = self.mean.shape
        if z.ndim != 2 or z.shape[1] != dim or y.shape != z.shape[:1]:
            raise ValueError(f"z must be [B, {dim}] and y [B], got {list(z.shape)} and {list(y.shape)}")
        if len(z) == 0:
            return
        z, y = z.to(self.mean), y.to(self.count)
        if not z.isfinite().all():
            raise ValueError("features must be finite, got NaN or infinity: has the training diverged?")
        low, high = torch.stack(y.aminmax()).tolist()
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must be in 0 … {num_classes - 1}, got {low if low < 0 else high}")
        counts = torch.bincount(y, minlength=num_classes)
        sizes, before = torch.stack([counts, self.count]).tolist()
        for c, members in enumerate(z[y.argsort(stable=True)].split(sizes)):
            if sizes[c]:
                self._add(c, members, before[c])
        self.count += counts

    def _add(self, c: int, members: Tensor, before: int) -> None:
        """Merge the n samples ``members: [n, D]`` of class `c` into the `before` that it has already."""
        n = len(members)
        # Differences from the running mean are small: their mean keeps digits that the mean of z loses.
        shifted = members - self.mean[c]
        delta = shifted.mean(0, keepdim=True)
        # The term of the means is one more row of the same product.
        rows = torch.cat([shifted - delta, delta * math.sqrt(before * n / (before + n))])
        self.scatter[c].addmm_(rows.T, rows)
        self.mean[c] += delta[0] * (n / (before + n))

    @torch.no_grad()
    def merge(self, other: GaussianStatistics) -> None:
        """Add all samples of `other`, which is left as it is.

        Raises:
            ValueError: another number of classes or dimensions.
        """
        shape, got = list(self.mean.shape), list(other.mean.shape)
        if got != shape:
            raise ValueError(f"statistics must be of shape [C, D] = {shape}, got {got}")
        count, added = self.count.double(), other.count.to(self.mean)
        share = added / (count + added).clamp(min=1)
        delta = other.mean.to(self.mean) - self.mean
        root = (count * share).sqrt().unsqueeze(-1) * delta
        self.scatter += other.scatter.to(self.scatter)
        self.scatter.baddbmm_(root.unsqueeze(-1), root.unsqueeze(-2))
        self.mean += share.unsqueeze(-1) * delta
        self.count += other.count.to(self.count)

    def all_reduce(self) -> None:
        """Merge the statistics of all processes in the order of their ranks, so that all hold the same.

        Does nothing without an initialised process group. Call it once, after the last :meth:`update`:
        a second call would count every sample once per process.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        num_classes, dim = self.mean.shape
        merged = GaussianStatistics(num_classes, dim, self.mean.device)
        # One rank at a time: gathering all at once would hold world_size times C D^2 numbers.
        for rank in range(distributed.get_world_size()):
            part = self
            if rank != distributed.get_rank():
                part = GaussianStatistics(num_classes, dim, self.mean.device)
            for tensor in (part.count, part.mean, part.scatter):
                distributed.broadcast(tensor, src=rank)
            merged.merge(part)
        self.count, self.mean, self.scatter = merged.count, merged.mean, merged.scatter


class ClassGaussians(Fitted):
    r"""One Gaussian with a full covariance per class, :math:`\mathcal N(z; \mu_c, \Sigma_c + \epsilon I)`.

    :math:`\Sigma_c = S_c / (n_c - 1)`, and :math:`\epsilon` is the first of `min_jitter` and those of 1e-20,
    1e-19, …, 1e-1 above it with which every class has a Cholesky factor. The joint log-density of features
    and class is ``log_prob(z) + log_prior``, that of the features alone its ``logsumexp(-1)``.

    The fitted state is made of buffers that stay float64 whatever cast (``half()``, ``float()``,
    ``to(dtype)``) reaches the module or a parent of it: a rounded Cholesky factor is another covariance.

    References:
        Mukhoti et al., arXiv:2102.11582, Algorithm 1.

    Args:
        num_classes: C.
        dim: D, dimension of the features.
        min_jitter: smallest jitter to use. Zero follows the paper, but where a feature is constant within a
            class any other value of it is then astronomically unlikely; 1e-6 tames that.

    Raises:
        ValueError: `min_jitter` is negative or not finite.
    """

    mean: Tensor
    scale_tril: Tensor
    log_prior: Tensor
    jitter: Tensor

    def __init__(self, num_classes: int, dim: int, min_jitter: float = 0.0) -> None:
        super().__init__()
        self.min_jitter = _checked_jitter(min_jitter)
        self.register_buffer("mean", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("scale_tril", torch.zeros(num_classes, dim, dim, dtype=torch.float64))
        self.register_buffer("log_prior", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("jitter", torch.zeros((), dtype=torch.float64))
        self._whitening: tuple[Tensor, int, Whitening] | None = None

    @torch.no_grad()
    def fit(self, statistics: GaussianStatistics) -> None:
        """Set means, covariances and priors :math:`n_c / n` from `statistics`; nothing changes if that fails.

        Raises:
            DataError: a class has fewer than 2 samples.
            ValueError: statistics of another shape, or covariances that no jitter makes positive definite.
        """
        _require_shape(statistics, self.mean)
        for c, n in enumerate(statistics.count.tolist()):
            if n < 2:
                raise DataError(
                    f"class {c} has {n} training sample{'s' * (n != 1)}; a full covariance needs at least 2:"
                    f" add samples of the class or leave the class out of the data set"
                )
        count = statistics.count.to(self.mean)
        covariance = statistics.scatter.to(self.mean) / (count - 1)[:, None, None]
        scale_tril, jitter = _cholesky(covariance, self.min_jitter)
        log.info("jitter of the class covariances: %g", jitter)
        self.mean.copy_(statistics.mean)
        self.scale_tril.copy_(scale_tril)
        self.log_prior.copy_((count / count.sum()).log())
        self.jitter.fill_(jitter)
        self.fitted.fill_(True)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``[B, C]`` of features ``z: [B, D]`` under each class, float64, differentiable in `z`.

        Of float32 features without gradients, distances come from float32 products where those agree with float64 to
        1e-6 (:class:`~uncertainty_est.densities.whitening.Whitening`).

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: features of another shape.
        """
        self.require_fit()
        dim = self.mean.shape[1]
        if z.ndim != 2 or z.shape[1] != dim:
            raise ValueError(f"z must be [B, {dim}], got {list(z.shape)}")
        parts = z.split(max(1, _CHUNK // dim))
        wants_digits = z.dtype == torch.float64 or (torch.is_grad_enabled() and z.requires_grad)
        whitening = None if wants_digits or not is_float32_exact() else self._float32_whitening()
        squared = torch.cat([self._squared_distances(part.double(), whitening) for part in parts])
        half_log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (squared + dim * math.log(2 * math.pi)) - half_log_det

    def _float32_whitening(self) -> Whitening | None:
        """Factors for products in float32, made once for a fitted state; ``None`` where those would lose digits."""
        made = self._whitening
        if made is None or made[0] is not self.scale_tril or made[1] != self.scale_tril._version:
            made = self.scale_tril, self.scale_tril._version, Whitening(self.mean, self.scale_tril)
            self._whitening = made
        return made[2] if made[2].is_exact else None

    def _squared_distances(self, z: Tensor, whitening: Whitening | None) -> Tensor:
        """Squared Mahalanobis distances ``[B, C]`` of ``z: [B, D]`` float64, a chunk of classes at a time."""
        num_classes, dim = self.mean.shape
        classes = max(1, _CHUNK // (dim * max(len(z), dim)))
        distances = []
        for first in range(0, num_classes, classes):
            centred = z - self.mean[first : first + classes].unsqueeze(1)
            if whitening is not None:
                distances.append(whitening.distances(centred, first))
                continue
            factors = self.scale_tril[first : first + classes]
            whitened = torch.linalg.solve_triangular(factors, centred.mT, upper=False)
            distances.append(whitened.square().sum(-2))
        return torch.cat(distances).T


class TiedGaussians(Fitted):
    r"""Gaussians of all classes with one covariance, :math:`\mathcal N(z; \mu_c, \Sigma + \epsilon I)`.

    :math:`\Sigma = \tfrac1n \sum_c S_c`, the empirical covariance of features about the means of their classes;
    :math:`\epsilon` as in :class:`ClassGaussians`. The state is float64 whatever cast reaches the module.

    References:
        Lee et al., arXiv:1807.03888, Eq. 1.

    Args:
        num_classes: C.
        dim: D, dimension of the features.
        min_jitter: smallest jitter to use.

    Raises:
        ValueError: `min_jitter` is negative or not finite.
    """

    mean: Tensor
    scale_tril: Tensor

    def __init__(self, num_classes: int, dim: int, min_jitter: float = 0.0) -> None:
        super().__init__()
        self.min_jitter = _checked_jitter(min_jitter)
        self.register_buffer("mean", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("scale_tril", torch.zeros(dim, dim, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, statistics: GaussianStatistics) -> None:
        """Set means and covariance from `statistics`; nothing changes if that fails.

        Raises:
            DataError: a class has no sample.
            ValueError: statistics of another shape, or a covariance that no jitter makes positive definite.
        """
        _require_shape(statistics, self.mean)
        if not statistics.count.all():
            absent = int((statistics.count == 0).nonzero()[0])
            raise DataError(
                f"class {absent} has no training sample, and so no mean: add samples of the class or leave the"
                f" class out of the data set"
            )
        covariance = statistics.scatter.to(self.mean).sum(0, keepdim=True) / statistics.count.sum()
        scale_tril, jitter = _cholesky(covariance, self.min_jitter)
        log.info("jitter of the tied covariance: %g", jitter)
        self.mean.copy_(statistics.mean)
        self.scale_tril.copy_(scale_tril[0])
        self.fitted.fill_(True)

    def squared_distances(self, z: Tensor) -> Tensor:
        r""":math:`(z - \mu_c)^\top \Sigma^{-1} (z - \mu_c)`, ``[B, C]`` float64, differentiable in ``z: [B, D]``.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self.require_fit()
        rows = torch.cat([z.double(), self.mean])
        white = torch.linalg.solve_triangular(self.scale_tril, rows.T, upper=False).T
        # Differences, not products: |z|^2 - 2 z m + |m|^2 loses digits far from the means.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(white[: len(z)], white[len(z) :], compute_mode=exact).square()


def _require_shape(statistics: GaussianStatistics, mean: Tensor) -> None:
    shape, got = list(mean.shape), list(statistics.mean.shape)
    if got != shape:
        raise ValueError(f"statistics must be of shape [C, D] = {shape}, got {got}")


def _checked_jitter(min_jitter: float) -> float:
    if not 0 <= min_jitter < math.inf:
        raise ValueError(f"min_jitter must be finite and at least 0, got {min_jitter}")
    return min_jitter


def _cholesky(covariance: Tensor, min_jitter: float) -> tuple[Tensor, float]:
    """Factors of ``covariance: [C, D, D]``, and the jitter that was added to its diagonal in place."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    variances = diagonal.clone()
    for jitter in (min_jitter, *(j for j in _JITTERS if j > min_jitter)):
        diagonal.copy_(variances + jitter)
        factor, info = torch.linalg.cholesky_ex(covariance)
        if not info.any():
            return factor, jitter
    raise ValueError(
        f"the covariance of class {int(info.argmax())} is not positive definite even with jitter {jitter:g}:"
        f" scale the features down or raise min_jitter"
    )
