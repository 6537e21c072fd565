"""Noise of every kind and sets with the wrong scale."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from uncertainty_est.data.source import SPLIT_NAMES, Source
from uncertainty_est.data.sources.image import Digits
from uncertainty_est.data.sources.noise import Constant, GaussianNoise, UniformNoise, Unscaled
from uncertainty_est.data.sources.tabular import BundledTable
from uncertainty_est.errors import DataError

KINDS = [GaussianNoise, UniformNoise, Constant]
SHAPES = [(1, 8, 8), (3, 4, 6), (5,)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_space_type_and_own_draws_for_each_split(kind: Callable[..., Source], shape: tuple[int, ...]) -> None:
    source = kind(shape, n=200)
    splits = [source.split(name) for name in SPLIT_NAMES]
    image = len(shape) == 3
    assert source.space == ("raw" if image else "network")
    for name, split in zip(SPLIT_NAMES, splits, strict=True):
        assert split.x.shape == (200, *shape) and split.x.dtype == (torch.uint8 if image else torch.float32)
        assert (split.y == -1).all()
        assert torch.equal(split.x, source.split(name).x)
        assert torch.equal(split.x, kind(shape, n=200).split(name).x)
        assert not torch.equal(split.x, kind(shape, n=200, split_seed=2).split(name).x)
    for a, b in combinations(splits, 2):
        assert not torch.equal(a.x, b.x) and not set(a.indices.tolist()) & set(b.indices.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_items_by_default(kind: Callable[..., Source]) -> None:
    assert len(kind([2]).split("test")) == 10_000


def test_gaussian_images_are_clipped() -> None:
    x = GaussianNoise([1, 16, 16], n=2000).split("test").x.double()
    clipped = stats.norm(127.5, 60)
    assert x.mean() == pytest.approx(127.5, abs=0.5)
    assert (x == 0).double().mean() == pytest.approx(clipped.cdf(0.5), abs=2e-3)
    assert (x == 255).double().mean() == pytest.approx(clipped.sf(254.5), abs=2e-3)
    assert (x <= 100).double().mean() == pytest.approx(clipped.cdf(100.5), abs=5e-3)


def test_gaussian_images_can_wrap_around_instead() -> None:
    x = GaussianNoise([1, 16, 16], n=2000, clip=False).split("test").x
    # What a clip would pile up at the ends is spread to the opposite side.
    assert (x == 0).double().mean() < 0.004 and (x == 255).double().mean() < 0.004


def test_uniform_images_have_all_256_values_equally_often() -> None:
    counts = UniformNoise([1, 16, 16], n=2000).split("test").x.flatten().bincount(minlength=256)
    assert len(counts) == 256 and stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_tables_have_the_published_distributions() -> None:
    gauss = GaussianNoise([4]).split("test").x.flatten().numpy()
    uniform = UniformNoise([4]).split("test").x.flatten().numpy()
    assert stats.kstest(gauss, "norm").pvalue > 1e-4
    assert stats.kstest(uniform, stats.uniform(-5, 10).cdf).pvalue > 1e-4
    constant = Constant([4]).split("test").x[:, 0].numpy()
    assert stats.kstest(constant, stats.uniform(-5, 10).cdf).pvalue > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_item_has_one_value(shape: tuple[int, ...]) -> None:
    x = Constant(shape, n=500).split("test").x.flatten(1)
    assert torch.equal(x.amin(1), x.amax(1)) and len(x[:, 0].unique()) > 100


def test_unscaled_images_are_bytes_without_normalisation() -> None:
    source = Unscaled(Digits(shape=[1, 8, 8]))
    split, plain = source.split("test"), Digits(shape=[1, 8, 8]).split("test")
    assert source.space == "network" and source.name == "digits_unscaled"
    assert split.x.dtype == torch.float32 and torch.equal(split.x, plain.x.float()) and split.x.max() == 255
    assert torch.equal(split.y, plain.y) and torch.equal(split.indices, plain.indices)


def test_unscaled_tables_are_255_times_the_raw_features() -> None:
    source = Unscaled(BundledTable("wine", shape=[13]))
    assert source.space == "raw"
    assert torch.equal(source.split("test").x, BundledTable("wine", shape=[13]).split("test").x * 255)
    noise = Unscaled(UniformNoise([3], n=10))
    assert noise.space == "network" and noise.split("val").x.abs().max() > 5


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        Constant([2], n=0)
    with pytest.raises(DataError, match=r"must have 1 or 3 entries, got \(2, 3\)"):
        GaussianNoise([2, 3]).prepare()
    with pytest.raises(DataError, match="cannot be given the shape"):
        Unscaled(BundledTable("wine", shape=[12])).prepare()


def test_the_same_prefix_comes_first_in_a_longer_set() -> None:
    few, many = (GaussianNoise([3, 4, 4], n=n).split("val").x for n in (10, 20))
    assert np.array_equal(few, many[:10])
