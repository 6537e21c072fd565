"""Bundled tables and generated points in the plane."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine, make_moons

from tests.conftest import real_data
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.synthetic import AnomalousGaussian2D, FarGrid2D, Gaussian2D, TwoMoons
from uncertainty_est.data.sources.tabular import BundledTable
from uncertainty_est.errors import DataError


@pytest.mark.parametrize(
    ("name", "load", "sizes"),
    [("wine", load_wine, (125, 17, 36)), ("breast_cancer", load_breast_cancer, (398, 57, 114))],
)
def test_bundled_tables_keep_their_units(
    name: str, load: Callable[..., tuple[np.ndarray, np.ndarray]], sizes: tuple[int, ...]
) -> None:
    data, target = load(return_X_y=True)
    source = BundledTable(name, shape=[data.shape[1]])
    for split_name, size in zip(SPLIT_NAMES, sizes, strict=True):
        split = source.split(split_name)
        assert len(split) == size
        assert np.array_equal(split.x, data[split.indices].astype(np.float32))
        assert np.array_equal(split.y, target[split.indices])


@pytest.mark.parametrize("shape", [[12], [1, 8, 8]])
def test_another_number_of_features_is_refused(shape: list[int]) -> None:
    with pytest.raises(DataError, match=r"wine is a table of 13 features and cannot be given the shape"):
        BundledTable("wine", shape=shape).prepare()


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset must be 'wine' or 'breast_cancer', got 'beer'"):
        BundledTable("beer", shape=[3])


def test_two_moons_are_scikit_learns_stretched() -> None:
    source = TwoMoons(shape=[2])
    x, y = source.load("all")
    reference, labels = make_moons(10_000, noise=0.1, random_state=1)
    assert np.allclose(x, reference * 2 + [-1, -0.2], atol=1e-6) and np.array_equal(y, labels)
    # The split seed decides who goes where, not what the points are.
    other = TwoMoons(shape=[2], split_seed=9)
    assert torch.equal(other.load("all")[0], x)
    assert not torch.equal(other.split("val").indices, source.split("val").indices)
    assert len(TwoMoons(shape=[2], n=100).load("all")[0]) == 100


def test_the_far_grid_is_exactly_what_is_far() -> None:
    far, _ = FarGrid2D(shape=[2]).load("all")
    moons, _ = TwoMoons(shape=[2]).load("all")
    side = torch.linspace(-6, 6, 61)
    grid = torch.cartesian_prod(side, side)
    distance = torch.cdist(grid, moons).amin(1)
    assert len(far) == int((distance > 1).sum()) and 0 < len(far) < len(grid)
    assert torch.cdist(far, moons).amin() > 1
    assert far.abs().max() == 6
    nearer = FarGrid2D(shape=[2], min_distance=0.5, extent=3, points_per_side=31).load("all")[0]
    assert torch.cdist(nearer, moons).amin() > 0.5 and nearer.abs().max() == 3


def test_gaussians_have_the_published_means_and_spread() -> None:
    x, y = Gaussian2D(shape=[2]).load("all")
    assert y.bincount().tolist() == [500] * 3
    means = torch.tensor([[0, 2], [3**0.5, -1], [-(3**0.5), -1]])
    for c in range(3):
        assert torch.allclose(x[y == c].mean(0), means[c], atol=4 * 0.2 / 500**0.5)
        assert torch.allclose(x[y == c].std(0), torch.tensor(0.2), rtol=0.15)


def test_the_ring_has_40_clusters_far_outside() -> None:
    x, y = AnomalousGaussian2D(shape=[2]).load("all")
    assert y.bincount().tolist() == [10] * 40
    assert torch.allclose(x.norm(dim=1), torch.tensor(15.0), atol=0.5)
    assert x[y == 0].mean(0).tolist() == pytest.approx([0, 15], abs=0.15)
    assert x[y == 10].mean(0).tolist() == pytest.approx([15, 0], abs=0.15)


def test_the_ring_is_laid_out_as_the_published_file() -> None:
    rows = np.genfromtxt(real_data() / "gaussian2d" / "anomalous-2Ddataset.csv", delimiter=",", skip_header=1)
    x, y = AnomalousGaussian2D(shape=[2]).load("all")
    for k in range(40):
        published = rows[rows[:, 3] == k, 1:3]
        assert len(published) == 10
        assert np.allclose(published.mean(0), x[y == k].mean(0), atol=0.3)
