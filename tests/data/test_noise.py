"""Noise of every kind and sets with the wrong scale."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import Tensor

from uncertainty_est.data.source import SPLIT_NAMES, Source
from uncertainty_est.data.sources import noise
from uncertainty_est.data.sources.image import Digits
from uncertainty_est.data.sources.noise import (
    Constant,
    GaussianNoise,
    SmoothedNoise,
    UniformNoise,
    Unscaled,
    gaussian_blur,
)
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianNoise([1, 8, 8], n=50),
        lambda: GaussianNoise([1, 8, 8], n=50, clip=False),
        lambda: SmoothedNoise(Digits(shape=[1, 8, 8]), n=50),
    ],
)
@pytest.mark.parametrize("limit", [("_CHUNK", 7), ("_VALUES", 64 * 7), ("_VALUES", 1)])
def test_images_do_not_depend_on_how_many_are_floats_at_once(
    make: Callable[[], Source], limit: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make().split("val").x
    monkeypatch.setattr(noise, *limit)
    assert torch.equal(make().split("val").x, whole)


def test_uniform_images_have_all_256_values_equally_often() -> None:
    counts = UniformNoise([1, 16, 16], n=2000).split("test").x.flatten().bincount(minlength=256)
    assert len(counts) == 256 and stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_tables_have_the_published_distributions() -> None:
    gauss = GaussianNoise([4]).split("test").x.flatten().numpy()
    uniform = UniformNoise([4]).split("test").x.flatten().numpy()
    near = UniformNoise([4], reach=2.5).split("test").x.flatten().numpy()
    assert stats.kstest(gauss, "norm").pvalue > 1e-4
    assert stats.kstest(uniform, stats.uniform(-5, 10).cdf).pvalue > 1e-4
    assert stats.kstest(near, stats.uniform(-2.5, 5).cdf).pvalue > 1e-4
    with pytest.raises(ValueError, match="reach must be positive, got 0"):
        UniformNoise([4], reach=0)
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


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (2, 3, 40)])
def test_the_blur_is_scipys_for_every_image_at_once(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, sigma = rng.random((12, *shape)), rng.uniform(1, 2.5, 12)
    expected = np.stack([gaussian_filter(image, (0, s, s)) for image, s in zip(x, sigma, strict=True)])
    np.testing.assert_allclose(gaussian_blur(x, sigma), expected, atol=1e-12)


def test_smoothed_noise_has_smooth_blotches_of_the_images_pixels() -> None:
    digits = Digits(shape=[1, 8, 8])
    source = SmoothedNoise(digits, n=1500)
    splits = {name: source.split(name) for name in SPLIT_NAMES}
    for a, b in combinations(splits.values(), 2):
        assert not torch.equal(a.x, b.x) and not set(a.indices.tolist()) & set(b.indices.tolist())
    split = splits["test"]
    assert source.space == "raw" and split.x.shape == (1500, 1, 8, 8) and split.x.dtype == torch.uint8
    assert (split.y == -1).all() and torch.equal(split.x, SmoothedNoise(digits, n=1500).split("test").x)
    assert not torch.equal(split.x, SmoothedNoise(digits, n=1500, split_seed=2).split("test").x)

    def roughness(images: Tensor) -> float:
        """Mean difference of neighbours over the standard deviation of pixels."""
        u = images.double()
        return (u.diff(dim=-1).abs().mean() / u.std()).item()

    assert roughness(split.x) < 0.5 * roughness(UniformNoise([1, 8, 8], n=1500).split("test").x)
    assert split.x.double().flatten(1).std(1).median() > 10  # the contrast is there


def test_smoothed_noise_permutes_all_channels_alike() -> None:
    """Of images whose channels are equal, the noise's are equal; what has no pixels to permute is refused."""
    x = SmoothedNoise(Digits(shape=[3, 8, 8]), n=50).split("train").x
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
    with pytest.raises(DataError, match="smoothed_noise holds images"):
        SmoothedNoise(BundledTable("wine", shape=[13])).prepare()
