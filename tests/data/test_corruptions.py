"""Common corruptions: what each does, by closed forms and other code; an image is always corrupted alike."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.conftest import CONFIGS, Trained
from uncertainty_est.building import build_data
from uncertainty_est.data import corruptions
from uncertainty_est.data.corruptions import corrupt
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.corrupted import Corrupted
from uncertainty_est.data.sources.image import Digits, PhotoPatches
from uncertainty_est.data.sources.noise import GaussianNoise, Unscaled
from uncertainty_est.data.sources.synthetic import TwoMoons
from uncertainty_est.errors import DataError
from uncertainty_est.evaluate import evaluate
from uncertainty_est.request import Request

PAPER = [
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
]
RANDOM = {*PAPER[:3], "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"}


def generators(n: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(n)]


def apply(x: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return corrupt(x, name, severity, generators(len(x), seed))


def photos(side: int = 32, n: int = 24, channels: int = 3) -> np.ndarray:
    """Tiles of photographs of half the size, which have something to show in few pixels."""
    x = PhotoPatches(shape=[channels, 2 * side, 2 * side]).load("all")[0].numpy()
    return ndimage.zoom(x[:: len(x) // n][:n], (1, 1, 0.5, 0.5), order=1, grid_mode=True, mode="nearest")


def plain(level: int, shape: Sequence[int] = (3, 64, 64), n: int = 4) -> np.ndarray:
    return np.full((n, *shape), level, np.uint8)


def change(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(y.astype(int) - x).mean())


def test_they_are_the_papers_fifteen() -> None:
    assert corruptions.names() == PAPER


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 7, 40), (3, 96, 64)])
def test_any_shape_and_every_severity(name: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    kept = x.copy()
    for severity in range(1, 6):
        y = apply(x, name, severity)
        assert y.shape == x.shape and y.dtype == np.uint8
    assert not np.array_equal(x, y)
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("name", [name for name in PAPER if name not in ("elastic_transform", "frost", "glass_blur")])
@pytest.mark.parametrize("channels", [1, 3])
def test_severity_rises(name: str, channels: int) -> None:
    x = photos(channels=channels)
    changes = [change(x, apply(x, name, severity)) for severity in range(1, 6)]
    assert changes == sorted(changes) and changes[4] > 1.2 * changes[0] > 0


@pytest.mark.parametrize("name", PAPER)
def test_an_image_is_corrupted_alike_in_any_company(name: str) -> None:
    x = photos(n=6)
    whole = apply(x, name, 3)
    assert np.array_equal(whole, apply(x, name, 3))
    order = [4, 1]
    assert np.array_equal(corrupt(x[order], name, 3, [generators(6)[i] for i in order]), whole[order])
    assert np.array_equal(whole, apply(x, name, 3, seed=1)) == (name not in RANDOM)


def test_chunks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    x = photos(n=5)
    whole = apply(x, "fog", 2)
    monkeypatch.setattr(corruptions, "_CHUNK", 2)
    assert np.array_equal(apply(x, "fog", 2), whole)


@pytest.mark.parametrize(("severity", "std"), list(enumerate([0.04, 0.06, 0.08, 0.09, 0.10], 1)))
def test_gaussian_noise_has_its_published_spread(severity: int, std: float) -> None:
    values = apply(plain(128), "gaussian_noise", severity).astype(float) / 255
    assert values.std() == pytest.approx(std, rel=0.01)
    assert values.mean() == pytest.approx(127.5 / 255, abs=0.002)  # cut to integers


@pytest.mark.parametrize(("severity", "photons"), list(enumerate([500, 250, 100, 75, 50], 1)))
def test_shot_noise_has_a_variance_of_level_by_photons(severity: int, photons: int) -> None:
    values = corruptions.shot_noise(plain(51) / 255, corruptions.Draws(generators(4)), photons)  # not yet cut
    assert values.var() == pytest.approx(0.2 / photons, rel=0.03)
    assert np.array_equal(np.floor(255 * values.clip(0, 1) + 1e-6), apply(plain(51), "shot_noise", severity))


@pytest.mark.parametrize(("severity", "amount"), list(enumerate([0.01, 0.02, 0.03, 0.05, 0.07], 1)))
def test_impulse_noise_blackens_and_whitens_its_share(severity: int, amount: float) -> None:
    y = apply(plain(100, n=12), "impulse_noise", severity)
    assert set(np.unique(y)) == {0, 100, 255}
    for level in (0, 255):
        assert (y == level).mean() == pytest.approx(amount / 2, rel=0.08)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
def test_what_moves_pixels_leaves_a_plain_image(name: str) -> None:
    for severity in range(1, 6):
        assert np.array_equal(apply(plain(77), name, severity), plain(77))


def test_defocus_blur_of_a_point_is_its_kernel() -> None:
    x = np.zeros((1, 1, 32, 32), np.uint8)
    x[0, 0, 16, 16] = 255
    gauss = np.exp(-0.5 * (np.arange(-1, 2) / 0.4) ** 2)
    gauss /= gauss.sum()
    expected = np.zeros((32, 32))
    expected[15:18, 15:18] = np.outer(gauss, gauss)  # a disc of 0.3 pixels is one pixel
    assert np.array_equal(apply(x, "defocus_blur", 1)[0, 0], np.floor(255 * expected))
    cross = apply(x, "defocus_blur", 4)[0, 0]  # a disc of 1 pixel, hardly softened: five pixels alike
    assert {cross[16, 16], cross[15, 16], cross[16, 17]} <= {50, 51} and cross[15, 15] == 0


def test_motion_blur_is_half_a_gaussian() -> None:
    x = np.zeros((1, 1, 33, 33))
    x[0, 0, 16, 16] = 1
    weight = np.exp(-0.5 * (np.arange(13) / 2) ** 2)
    weight /= weight.sum()
    for degrees, place in ((0, np.s_[0, 0, 16, 16:3:-1]), (90, np.s_[0, 0, 16:3:-1, 16])):
        y = corruptions._blur_along(x, np.array([float(degrees)]), 6, 2)
        np.testing.assert_allclose(y[place], weight)
        assert y.sum() == pytest.approx(1)


def test_zoom_blur_keeps_the_middle_and_enlarges() -> None:
    coarse = np.zeros((1, 1, 101, 101))
    coarse[..., 40:61, 40:61] = 1
    enlarged = corruptions._zoom(coarse, 1.25)
    assert enlarged.shape == coarse.shape and enlarged.mean() == pytest.approx(1.25**2 * coarse.mean(), rel=0.03)
    np.testing.assert_allclose(enlarged, enlarged[..., ::-1, ::-1], atol=1e-12)


def test_glass_blur_swaps_neighbours() -> None:
    """At its lowest severity the blur is none, and each pixel is found again near where it was."""
    x = np.arange(225, dtype=np.uint8).reshape(1, 1, 15, 15)
    y = apply(x, "glass_blur", 1)
    assert np.array_equal(np.sort(y, axis=None), np.arange(225)) and (y != x).mean() > 0.3
    rows, columns = np.divmod(y[0, 0].astype(int), 15)
    assert np.abs(rows - np.arange(15)[:, None]).mean() < 1 and np.abs(columns - np.arange(15)).mean() < 1


def slow_plasma(noise: np.ndarray, size: int, decay: float) -> np.ndarray:
    """The diamond-square algorithm, point by point."""
    heights, numbers = np.zeros((size, size)), iter(noise)
    step, wibble = size, 100.0
    while step > 1:
        half = step // 2
        for rows, columns in ((half, half), (0, half), (half, 0)):
            old = heights.copy()
            for r in range(rows, size, step):
                for c in range(columns, size, step):
                    if rows == columns:
                        around = [(r + i, c + j) for i in (-half, half) for j in (-half, half)]
                    else:
                        around = [(r - half, c), (r + half, c), (r, c - half), (r, c + half)]
                    heights[r, c] = sum(old[i % size, j % size] for i, j in around) / 4 + wibble**2 * next(numbers)
        step, wibble = half, wibble / decay
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize("decay", [3.0, 1.75])
def test_clouds_are_those_of_the_diamond_square_algorithm(decay: float) -> None:
    clouds = corruptions._plasma(corruptions.Draws(generators(3)), 30, decay)
    for cloud, generator in zip(clouds, generators(3), strict=True):
        np.testing.assert_allclose(cloud, slow_plasma(generator.uniform(-1, 1, 32 * 32 - 1), 32, decay), atol=1e-9)


def test_fog_lies_between_the_image_and_white_in_its_own_range() -> None:
    x = photos()
    y = apply(x, "fog", 5).astype(float)
    top = x.max((1, 2, 3), keepdims=True) / 255
    darkest = np.floor(255 * (x / 255) * top / (top + 1.5))
    assert (y >= darkest - 1).all() and (y <= 255 * top).all()


def test_brightness_is_more_of_the_value_in_hsv() -> None:
    x = photos(n=2)
    x[0, :, :4] = 0  # black has no hue
    y = apply(x, "brightness", 4).astype(int)
    for image, brighter in zip(x, y, strict=True):
        for pixel, found in zip(image.reshape(3, -1).T[::7], brighter.reshape(3, -1).T[::7], strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2)))
            assert np.abs(found - expected).max() <= 1.001


@pytest.mark.parametrize(("severity", "factor"), list(enumerate([0.75, 0.5, 0.4, 0.3, 0.15], 1)))
def test_contrast_shrinks_towards_the_mean_of_each_channel(severity: int, factor: float) -> None:
    x = photos(n=3)
    mean = x.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(apply(x, "contrast", severity), mean + factor * (x - mean), atol=1.001)


def test_elastic_transform_begins_with_an_affine_map() -> None:
    """Of a ramp it makes a ramp, which has the level of three points where those are moved to."""
    rows, columns = np.mgrid[:65, :65]
    ramp = (rows + 2 * columns).astype(np.uint8)
    y = apply(ramp[None, None], "elastic_transform", 1)[0, 0].astype(float)
    moves = generators(1)[0].uniform(-0.08 * 65, 0.08 * 65, (3, 2))
    for (column, row), (right, down) in zip([(53, 53), (53, 11), (11, 11)], moves, strict=True):
        found = ndimage.map_coordinates(y, [[row + down], [column + right]], order=1)[0]
        assert found == pytest.approx(row + 2 * column, abs=1.01)


def test_elastic_transform_moves_smoothly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64), dtype=np.uint8)
    assert change(noise, apply(noise, "elastic_transform", 5)) > 20
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (4, 1, 32, 1))
    for severity in range(1, 6):
        assert change(ramp, apply(ramp, "elastic_transform", severity)) < 50


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelate_and_jpeg_are_pillows(channels: int) -> None:
    x = photos(n=4, channels=channels)
    small, poor = apply(x, "pixelate", 5), apply(x, "jpeg_compression", 2)
    for image, coarse, compressed in zip(x, small, poor, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0).squeeze())
        box = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(box), coarse.transpose(1, 2, 0).squeeze())
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=65)
        assert np.array_equal(np.asarray(Image.open(stream)), compressed.transpose(1, 2, 0).squeeze())


def test_snow_and_frost_lighten_and_keep_what_is_beneath() -> None:
    x = photos(n=24)
    for name in ("snow", "frost"):
        y = apply(x, name, 3)
        assert y.mean() > x.mean() + 10
        detail = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True) if a.std() > 30]
        assert len(detail) > 5 and min(detail) > 0.5


def test_lengths_grow_with_the_image() -> None:
    """What a corruption does to a picture is alike at twice the size; at half the size it is not lost."""
    usual = photos(32)
    large = ndimage.zoom(usual, (1, 1, 2, 2), order=1, grid_mode=True, mode="nearest")
    for name in ("defocus_blur", "motion_blur"):
        ratio = change(large, apply(large, name, 5)) / change(usual, apply(usual, name, 5))
        assert 0.6 < ratio < 1.3
    tiny = photos(8)
    assert change(tiny, apply(tiny, "defocus_blur", 5)) > 2


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of gaussian_noise, .*, got 'fogg'; did you mean 'fog'\?"):
        Corrupted(Digits(shape=[1, 8, 8]), "fogg", 1)
    with pytest.raises(ValueError, match="severity must be 1 to 5, got 6"):
        corrupt(plain(1), "fog", 6, generators(4))


def test_a_corrupted_set_has_the_splits_and_labels_of_its_own() -> None:
    digits = Digits(shape=[1, 8, 8])
    source = Corrupted(digits, "fog", 3)
    source.prepare()
    assert (source.name, source.shape, source.space) == ("digits_fog_3", (1, 8, 8), "raw")
    for name in SPLIT_NAMES:
        split, clean = source.split(name), digits.split(name)
        assert torch.equal(split.y, clean.y) and torch.equal(split.indices, clean.indices)
        assert split.part == clean.part and split.x.shape == clean.x.shape and not torch.equal(split.x, clean.x)
        assert torch.equal(split.x, Corrupted(digits, "fog", 3).split(name).x)
    fewer = Corrupted(Digits(shape=[1, 8, 8], max_items=20, split_seed=1), "fog", 3).split("test")
    whole = source.split("test")
    rows = [whole.indices.tolist().index(index) for index in fewer.indices.tolist()]
    assert torch.equal(whole.x[rows], fewer.x)


def test_accuracy_and_calibration_under_shift(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    """``evaluate.py --dataset digits_<corruption>_<severity>`` is about the run's own test images, corrupted."""
    clean = trained("img_ce_baseline")
    tables = {}
    for name in (None, "digits_gaussian_noise_1", "digits_impulse_noise_5", "digits_fog_5"):
        out, runs = tmp_path / str(name), [clean.run.path]
        options = {"dataset": name, "ood_dataset": ["gaussian_noise"], "eval_classification": True, "no_plots": True}
        report = evaluate(Request(out, CONFIGS / "source", checkpoint=runs, **options))  # type: ignore[arg-type]
        assert report.failed == [] and set(report.clf["ID dataset"]) == {name or "digits"}
        tables[name or "digits"] = report.clf.set_index("Metric")["Value"]
    digits = Digits(shape=[1, 8, 8])
    x = Corrupted(digits, "fog", 5).split("test").x
    data = build_data(clean.fixed)
    data.setup()
    probs = clean.run.method.predict(data.transform(x)).probs
    assert probs is not None
    right = (probs.argmax(1) == digits.split("test").y).double().mean().item()
    assert tables["digits_fog_5"]["Accuracy"] == pytest.approx(100 * right, abs=1e-4)
    assert tables["digits_fog_5"]["Accuracy"] < tables["digits"]["Accuracy"] - 5
    assert tables["digits_fog_5"]["NLL"] > tables["digits"]["NLL"] and 0 < tables["digits_fog_5"]["ECE"] < 100
    assert tables["digits_gaussian_noise_1"]["Accuracy"] > tables["digits_impulse_noise_5"]["Accuracy"]


def test_only_images_of_eight_bits_are_corrupted() -> None:
    with pytest.raises(DataError, match="corruptions are of 8-bit images"):
        Corrupted(Unscaled(Digits(shape=[1, 8, 8])), "fog", 1).prepare()
    with pytest.raises(DataError, match="holds images and cannot be given the shape"):
        Corrupted(TwoMoons(shape=(2,)), "fog", 1).split("test")
    assert len(Corrupted(GaussianNoise([1, 8, 8], n=3), "fog", 1).split("test")) == 3
