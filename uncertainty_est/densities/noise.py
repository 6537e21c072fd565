"""Densities of noise that models are contrasted with: known exactly, sampled at once, fitted to data if need be."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics

# Where a box has no density its logarithm is this much lower than inside: e to it is zero, differences stay finite.
_OUTSIDE = -1e4
# No side of a box and no standard deviation is smaller than this share of the largest one: features may be constant.
_SMALLEST_SHARE = 1e-2


class NoiseDensity(nn.Module, ABC):
    """A density of inputs, without parameters that are trained.

    Args:
        data_shape: shape of one input.
    """

    def __init__(self, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = tuple(int(n) for n in data_shape)
        self.dim = math.prod(self.data_shape)

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take what was not given from data, batches ``[B, *data_shape]``, in one pass."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``[B]`` in nats of ``x: [B, *data_shape]``, finite everywhere."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[n, *data_shape]`` on the density's device; from the global generator if none is given."""


class UniformBox(NoiseDensity):
    """Uniform in a box, the same interval for every feature or the range of each in the data.

    Outside of the box the density is zero; its logarithm is given as 10,000 nats less than inside, a number with which
    losses stay finite.

    Args:
        data_shape: shape of one input.
        low: lower end of every side; ``None`` fits the box to data.
        high: upper end of every side; ``None`` fits the box to data.
        margin: share of each side that a fitted box is wider than the data, below and above.

    Raises:
        ValueError: one end alone, an empty interval, or a negative margin.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, data_shape: Sequence[int], low: float | None = None, high: float | None = None, margin: float = 0.1
    ) -> None:
        super().__init__(data_shape)
        if (low is None) != (high is None):
            raise ValueError(f"low and high must both be given or both be null, got {low} and {high}")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        if margin < 0:
            raise ValueError(f"margin must be at least 0, got {margin}")
        self.margin = margin
        self.fits = low is None
        self.register_buffer("low", torch.full(self.data_shape, 0.0 if low is None else low))
        self.register_buffer("high", torch.full(self.data_shape, 1.0 if high is None else high))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        if not self.fits:
            return
        ends = [torch.stack(torch.aminmax(x, dim=0)) for x in batches]
        low, high = torch.stack([end[0] for end in ends]).amin(0), torch.stack([end[1] for end in ends]).amax(0)
        side = (high - low).clamp(min=_SMALLEST_SHARE * (high - low).max())
        centre, half = (low + high) / 2, side * (0.5 + self.margin)
        self.low.copy_(centre - half)
        self.high.copy_(centre + half)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).flatten(1).all(1)
        log_density = -(self.high - self.low).log().sum()
        return torch.where(inside, log_density, log_density + _OUTSIDE).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(n, *self.data_shape, generator=generator, device=self.low.device, dtype=self.low.dtype)
        return self.low + (self.high - self.low) * u


class DiagonalNormal(NoiseDensity):
    """Independent normal features, the same for every feature or with the mean and deviation of each in the data.

    Args:
        data_shape: shape of one input.
        mean: of every feature; ``None`` fits mean and standard deviation to data.
        std: standard deviation of every feature; ``None`` fits mean and standard deviation to data.
        scale: factor of fitted standard deviations.

    Raises:
        ValueError: one moment alone, or a deviation or factor that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, data_shape: Sequence[int], mean: float | None = None, std: float | None = None, scale: float = 1.0
    ) -> None:
        super().__init__(data_shape)
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std must both be given or both be null, got {mean} and {std}")
        if (std is not None and not std > 0) or not scale > 0:
            raise ValueError(f"std and scale must be positive, got {std} and {scale}")
        self.scale = scale
        self.fits = mean is None
        self.register_buffer("mean", torch.full(self.data_shape, 0.0 if mean is None else mean))
        self.register_buffer("std", torch.full(self.data_shape, 1.0 if std is None else std))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        if not self.fits:
            return
        count = 0
        first = second = torch.zeros((), dtype=torch.float64)
        for x in batches:
            x = x.double()
            count, first, second = count + len(x), first + x.sum(0), second + x.square().sum(0)
        mean = first / count
        std = (second / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(self.scale * std.clamp(min=_SMALLEST_SHARE * std.max()))

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return -0.5 * z.square().flatten(1).sum(1) - self.std.log().sum() - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(n, *self.data_shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * z


class FullNormal(NoiseDensity):
    """The normal distribution with the mean and covariance of the data, the hardest to tell from data of all normals.

    Args:
        data_shape: shape of one input.
        jitter: added to the variances in every direction, so that the density has a width where the data have none.

    Raises:
        ValueError: a negative `jitter`.
    """

    def __init__(self, data_shape: Sequence[int], jitter: float = 1e-3) -> None:
        super().__init__(data_shape)
        self.gaussian = ClassGaussians(1, self.dim, min_jitter=jitter)

    def fit(self, batches: Iterable[Tensor]) -> None:
        statistics = GaussianStatistics(1, self.dim)
        for x in batches:
            statistics.update(x.flatten(1).cpu(), torch.zeros(len(x), dtype=torch.int64))
        self.gaussian.fit(statistics)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.gaussian.log_prob(x.flatten(1)).squeeze(-1).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        mean, factor = self.gaussian.mean[0], self.gaussian.scale_tril[0]
        z = torch.randn(n, self.dim, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + z @ factor.T).float().view(n, *self.data_shape)
