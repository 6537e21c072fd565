"""Small sets in the plane, generated. A set is always the same points, as if it came from a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial import KDTree
from sklearn.datasets import make_moons
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import fit_table
from uncertainty_est.own_data import Part

# Which items are training, validation or test is for split_seed to say; what they are is not.
_POINTS_SEED = 1


@dataclass(eq=False, kw_only=True)
class TwoMoons(PartitionedSource):
    """Two interleaved half circles with Gaussian noise of 0.1, then ``2 x + (-1, -0.2)``.

    Args:
        shape: ``(2,)``.
        n: number of points, half of them of each class.
    """

    name = "two_moons"
    n: int = 10_000

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        x, y = make_moons(self.n, noise=0.1, random_state=_POINTS_SEED)
        return fit_table(2 * x + np.array([-1.0, -0.2]), self.shape, self.name), torch.from_numpy(y.astype(np.int64))


@dataclass(eq=False, kw_only=True)
class FarGrid2D(PartitionedSource):
    """The points of a square grid that are far from every point of the two moons.

    Args:
        shape: ``(2,)``.
        extent: half the width of the square around the origin.
        min_distance: Euclidean distance from the nearest of the 10,000 points that a grid point must exceed.
        points_per_side: of the grid.
    """

    name = "two_moons_far"
    classes: Sequence[int] | None = field(default=None, init=False)  # the points have no labels
    extent: float = 6.0
    min_distance: float = 1.0
    points_per_side: int = 61

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        side = np.linspace(-self.extent, self.extent, self.points_per_side)
        grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
        moons = TwoMoons(shape=(2,)).load("all")[0].numpy()
        distance, _ = KDTree(moons).query(grid)
        far = grid[distance > self.min_distance]
        return fit_table(far, self.shape, self.name), torch.full((len(far),), -1)


class Gaussian2D(PartitionedSource):
    """Three round Gaussians of standard deviation 0.2 on a circle of radius 2, 500 points each.

    The means are ``(0, 2), (sqrt 3, -1), (-sqrt 3, -1)``.

    References:
        B. Charpentier, D. Zügner, S. Günnemann, Posterior Network (NeurIPS 2020), arXiv:2006.09239.
    """

    name = "gaussian2d"

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        x, y = _clusters_on_circle(clusters=3, points=500, radius=2.0, std=0.2)
        return fit_table(x, self.shape, self.name), y


class AnomalousGaussian2D(PartitionedSource):
    """A ring around :class:`Gaussian2D`: 40 clusters of 10 points, radius 15, standard deviation 0.1.

    The label is the number of the cluster, clockwise from the top.
    """

    name = "anomalous_gaussian2d"

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        x, y = _clusters_on_circle(clusters=40, points=10, radius=15.0, std=0.1)
        return fit_table(x, self.shape, self.name), y


def _clusters_on_circle(*, clusters: int, points: int, radius: float, std: float) -> tuple[np.ndarray, Tensor]:
    """Gaussian clusters with centres at equal steps, clockwise from the top: points and cluster numbers."""
    angle = 2 * math.pi * np.arange(clusters) / clusters
    centres = radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    label = np.repeat(np.arange(clusters), points)
    noise = np.random.default_rng(_POINTS_SEED).normal(scale=std, size=(len(label), 2))
    return centres[label] + noise, torch.from_numpy(label)
