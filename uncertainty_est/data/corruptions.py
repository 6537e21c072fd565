r"""The 15 common corruptions of images, in five severities, for images of any size in colour or grey.

Parameters are those that CIFAR-10-C was made with, for 32x32 pixels. Lengths in pixels grow with larger images and
stay as they are for smaller ones, in which a blur of part of a pixel would be none.

Every image has random numbers of its own, so that its corruption does not depend on which others are corrupted with
it. They are not those of the published arrays. Two corruptions differ from the published ones beyond that:

- ``frost`` lays a drawn pattern over the image, with the mean level and spread of the photographs that were used there,
  which are not part of this project;
- ``glass_blur`` swaps pixels, where the published code copies one over the other.

References:
    D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
    (ICLR 2019), arXiv:1903.12261; its parameters for CIFAR: https://github.com/hendrycks/robustness.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from uncertainty_est.errors import did_you_mean

SEVERITIES = 5

# ITU-R BT.601
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# Mean, and standard deviation in a window of 32x32, of the five photographs of frost that CIFAR-10-C was made with.
_ICE_MEAN, _ICE_STD = 0.64, 0.086
_CHUNK = 256
_SIDE = 32
_WATER = 1e-6  # keeps what is an integer but for rounding from being cut to the one below

Corruption = Callable[..., np.ndarray]
_CORRUPTIONS: dict[str, tuple[Corruption, Sequence[Any]]] = {}


def names() -> list[str]:
    """All corruptions, in the paper's order."""
    return list(_CORRUPTIONS)


def check(corruption: str, severity: int) -> None:
    """Refuse what :func:`corrupt` does not know.

    Raises:
        ValueError: with the nearest name, or the range.
    """
    if corruption not in _CORRUPTIONS:
        raise ValueError(
            f"corruption must be one of {', '.join(_CORRUPTIONS)}, got '{corruption}'"
            f"{did_you_mean(corruption, _CORRUPTIONS)}"
        )
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"severity must be 1 to {SEVERITIES}, got {severity}")


def corrupt(x: np.ndarray, corruption: str, severity: int, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Corrupted images, like the given ones, cut to integers as the published arrays are.

    Args:
        x: ``[N, C, H, W]`` uint8, C = 1 or 3.
        corruption: one of :func:`names`.
        severity: 1 to 5.
        generators: of random numbers, one for each image.

    Raises:
        ValueError: an unknown corruption or severity.
    """
    check(corruption, severity)
    function, levels = _CORRUPTIONS[corruption]
    out = np.empty_like(x)
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = function(x[part] / 255, Draws(generators[part]), *levels[severity - 1])
        out[part] = 255 * images.clip(0, 1) + _WATER
    return out


class Draws:
    """Random numbers for a batch, each image's from its own generator.

    Args:
        generators: one for each image.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def each(self, draw: Callable[[np.random.Generator], Any]) -> np.ndarray:
        """``[B, …]``: what `draw` makes of every generator."""
        return np.stack([draw(generator) for generator in self.generators])

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """``[B, *shape]`` of U(low, high)."""
        return self.each(lambda generator: generator.uniform(low, high, shape))

    def normal(self, *shape: int) -> np.ndarray:
        """``[B, *shape]`` of N(0, 1)."""
        return self.each(lambda generator: generator.standard_normal(shape))


def _levels(*levels: Any) -> Callable[[Corruption], Corruption]:
    """The parameters of a corruption for severities 1 to 5; one that is not a tuple is a single one."""

    def enter(function: Corruption) -> Corruption:
        rows = [level if isinstance(level, tuple) else (level,) for level in levels]
        _CORRUPTIONS[function.__name__] = function, rows
        return function

    return enter


def _growth(x: np.ndarray) -> float:
    """By how much lengths in pixels grow."""
    return max(1.0, min(x.shape[-2:]) / _SIDE)


# ------------------------------------------------------------------------------------------------------- noise


@_levels(0.04, 0.06, 0.08, 0.09, 0.10)
def gaussian_noise(x: np.ndarray, draws: Draws, std: float) -> np.ndarray:
    """Gaussian noise of a standard deviation on the scale [0, 1]."""
    return x + std * draws.normal(*x.shape[1:])


@_levels(500, 250, 100, 75, 50)
def shot_noise(x: np.ndarray, draws: Draws, photons: int) -> np.ndarray:
    """Poisson noise of a number of photons where the image is white."""
    rate = iter(x * photons)
    return draws.each(lambda generator: generator.poisson(next(rate))) / photons


@_levels(0.01, 0.02, 0.03, 0.05, 0.07)
def impulse_noise(x: np.ndarray, draws: Draws, amount: float) -> np.ndarray:
    """A share of the values black or white, alike often."""
    u = draws.uniform(0, 1, *x.shape[1:])
    return np.where(u < amount / 2, 0.0, np.where(u < amount, 1.0, x))


# -------------------------------------------------------------------------------------------------------- blur


@_levels((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def defocus_blur(x: np.ndarray, draws: Draws, radius: float, soft: float) -> np.ndarray:
    """The mean over a disc whose edge is softened by a Gaussian."""
    growth = _growth(x)
    kernel = _disc(radius * growth, soft * growth)
    return ndimage.convolve(x, kernel[None, None], mode="mirror")


@_levels((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
def glass_blur(x: np.ndarray, draws: Draws, std: float, reach: int, rounds: int) -> np.ndarray:
    """Pixels that change places with near ones, between two Gaussian blurs."""
    batch, channels, height, width = x.shape
    growth = _growth(x)
    reach, std = round(reach * growth), std * growth
    blur = (0, 0, std, std)
    levels = np.floor(255 * ndimage.gaussian_filter(x, blur, mode="nearest") + _WATER)
    rows, columns = (range(size - reach, reach, -1) for size in (height, width))
    pixels, images = levels.reshape(batch, channels, -1), np.arange(batch)
    place = np.tile(np.arange(height * width), (batch, 1))  # of the pixel that is shown
    for _ in range(rounds):
        moves = draws.each(lambda generator: generator.integers(-reach, reach, (2, len(rows), len(columns))))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                here = row * width + column
                there = here + moves[:, 0, i, j] * width + moves[:, 1, i, j]
                place[:, here], place[images, there] = place[images, there], place[:, here].copy()
    shuffled = np.take_along_axis(pixels, place[:, None], axis=2).reshape(x.shape)
    return ndimage.gaussian_filter(shuffled / 255, blur, mode="nearest")


@_levels((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def motion_blur(x: np.ndarray, draws: Draws, radius: int, std: float) -> np.ndarray:
    """Half a Gaussian along a line of up to 45 degrees from the horizontal."""
    return _blur_along(x, draws.uniform(-45, 45), round(radius * _growth(x)), std * _growth(x))


@_levels(1.06, 1.11, 1.16, 1.21, 1.26)
def zoom_blur(x: np.ndarray, draws: Draws, stop: float) -> np.ndarray:
    """The mean of the image and enlargements of it in steps of a hundredth."""
    factors = np.arange(1, stop, 0.01)
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


# ----------------------------------------------------------------------------------------------------- weather


@_levels(
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
def snow(
    x: np.ndarray,
    draws: Draws,
    mean: float,
    std: float,
    zoom: float,
    least: float,
    radius: int,
    blur: float,
    keep: float,
) -> np.ndarray:
    """Falling flakes: noise above a threshold, enlarged and blurred along a steep line, over a whitened image."""
    growth = _growth(x)
    flakes = _zoom(mean + std * draws.normal(1, *x.shape[2:]), zoom * growth)
    flakes = np.floor(255 * np.where(flakes < least, 0, flakes).clip(0, 1)) / 255
    flakes = _blur_along(flakes, draws.uniform(-135, -45), round(radius * growth), blur * growth)
    grey = np.tensordot(_LUMINANCE, x, axes=(0, 1))[:, None] if x.shape[1] == 3 else x
    whitened = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    return whitened + flakes + flakes[..., ::-1, ::-1]


@_levels((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
def frost(x: np.ndarray, draws: Draws, keep: float, amount: float) -> np.ndarray:
    """Crystals of ice over the image: the ridges of a fractal."""
    height, width = x.shape[2:]
    ridges = 1 - np.abs(2 * _plasma(draws, max(height, width), 2.0)[:, None, :height, :width] - 1)
    spread = ridges.std((2, 3), keepdims=True)
    ice = _ICE_MEAN + _ICE_STD * (ridges - ridges.mean((2, 3), keepdims=True)) / np.maximum(spread, 1e-6)
    return keep * x + amount * ice.clip(0, 1)


@_levels((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def fog(x: np.ndarray, draws: Draws, amount: float, decay: float) -> np.ndarray:
    """Clouds of a fractal over the image, in its own range of brightness."""
    height, width = x.shape[2:]
    clouds = _plasma(draws, max(height, width), decay)[:, None, :height, :width]
    top = x.max((1, 2, 3), keepdims=True)
    return (x + amount * clouds) * top / (top + amount)


@_levels(0.05, 0.1, 0.15, 0.2, 0.3)
def brightness(x: np.ndarray, draws: Draws, more: float) -> np.ndarray:
    """More of the value, with hue and saturation as they are."""
    value = x.max(1, keepdims=True)
    brighter = (value + more).clip(0, 1)
    return np.where(value > 0, x / np.where(value > 0, value, 1), 1) * brighter


# ----------------------------------------------------------------------------------------------------- digital


@_levels(0.75, 0.5, 0.4, 0.3, 0.15)
def contrast(x: np.ndarray, draws: Draws, factor: float) -> np.ndarray:
    """The distance of every value from the mean of its channel, multiplied."""
    mean = x.mean((2, 3), keepdims=True)
    return (x - mean) * factor + mean


@_levels((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
def elastic_transform(x: np.ndarray, draws: Draws, amount: float, smooth: float, affine: float) -> np.ndarray:
    """A random affine map near the identity, then smooth random shifts of every pixel; all in units of the side."""
    height, width = x.shape[2:]
    side = min(height, width)
    triangle = np.array([width // 2, height // 2]) + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = triangle + draws.uniform(-affine * side, affine * side, 3, 2)
    shifts = amount * side * draws.uniform(-1, 1, 2, height, width)
    back = np.linalg.solve(np.concatenate([moved, np.ones_like(moved[..., :1])], axis=2), triangle)
    rows, columns = np.mgrid[:height, :width].astype(float)
    image = _sample(x, np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back[:, None], align_corners=True)
    if amount == 0:
        return image
    std = smooth * side
    shifts = ndimage.gaussian_filter(shifts, (0, 0, std, std), mode="reflect", truncate=3)
    places = np.stack([columns + shifts[:, 0], rows + shifts[:, 1]], axis=-1)
    return _sample(image, places, align_corners=False)


@_levels(0.95, 0.9, 0.85, 0.75, 0.65)
def pixelate(x: np.ndarray, draws: Draws, factor: float) -> np.ndarray:
    """Fewer pixels, each the mean of those that it stands for."""
    height, width = x.shape[2:]
    small = max(1, int(width * factor)), max(1, int(height * factor))

    def coarsen(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _with_pillow(x, coarsen)


@_levels(80, 65, 58, 50, 40)
def jpeg_compression(x: np.ndarray, draws: Draws, quality: int) -> np.ndarray:
    """What JPEG keeps at a quality."""

    def compress(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _with_pillow(x, compress)


# ------------------------------------------------------------------------------------------------------- pieces


def _disc(radius: float, soft: float) -> np.ndarray:
    """Weights ``[K, K]`` of a disc, blurred by a Gaussian of 3x3 pixels (5x5 for a radius above 8); their sum is 1."""
    edge = 1 if radius <= 8 else 2
    reach = math.ceil(radius) + edge
    offset = np.arange(-reach, reach + 1)
    inside = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(float)
    gauss = np.exp(-0.5 * (np.arange(-edge, edge + 1) / soft) ** 2)
    kernel = ndimage.convolve(inside, np.outer(gauss, gauss), mode="constant")
    return kernel / kernel.sum()


def _blur_along(x: np.ndarray, degrees: np.ndarray, radius: int, std: float) -> np.ndarray:
    """Images ``[B, C, H, W]``, each the mean of copies moved along a line, ``degrees: [B]``, by 0 to 2 `radius` pixels.

    Weights are half a Gaussian; beyond its border an image is continued by its last pixel.
    """
    batch, channels, height, width = x.shape
    weight = np.exp(-0.5 * (np.arange(2 * radius + 1) / std) ** 2)
    weight /= weight.sum()
    angle = np.deg2rad(degrees)[:, None]
    flat, out = x.reshape(batch, channels, -1), np.zeros((batch, channels, height * width))
    for step, share in enumerate(weight):
        rows = np.arange(height) + np.ceil(step * np.sin(angle) - 0.5).astype(int)
        columns = np.arange(width) + np.ceil(step * np.cos(angle) - 0.5).astype(int)
        place = rows.clip(0, height - 1)[:, :, None] * width + columns.clip(0, width - 1)[:, None]
        out += share * np.take_along_axis(flat, place.reshape(batch, 1, -1), axis=2)
    return out.reshape(x.shape)


def _zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of images ``[B, C, H, W]``, enlarged bilinearly to their size."""
    size = x.shape[2:]
    cut = [math.ceil(n / factor) for n in size]
    top, left = ((n - c) // 2 for n, c in zip(size, cut, strict=True))
    middle = torch.from_numpy(x[:, :, top : top + cut[0], left : left + cut[1]])
    larger = F.interpolate(middle, [round(c * factor) for c in cut], mode="bilinear", align_corners=True).numpy()
    top, left = ((n - c) // 2 for n, c in zip(larger.shape[2:], size, strict=True))
    return larger[:, :, top : top + size[0], left : left + size[1]]


def _plasma(draws: Draws, side: int, decay: float) -> np.ndarray:
    """Clouds ``[B, S, S]`` from 0 to 1, S the power of two from `side` on, by the diamond-square algorithm on a torus.

    Every midpoint is the mean of its four neighbours and a random number, whose range falls by ``decay**2`` from one
    step to the next, which has half the distance.
    """
    size = 1 << max(1, (side - 1).bit_length())
    noise = draws.uniform(-1, 1, size * size - 1)
    clouds = np.zeros((len(noise), size, size))
    used, wibble, step = 0, 100.0, size

    def wobble(total: np.ndarray) -> np.ndarray:
        nonlocal used
        count = total[0].size
        numbers = noise[:, used : used + count].reshape(total.shape)
        used += count
        return total / 4 + wibble**2 * numbers

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        total = corners + np.roll(corners, -1, axis=1)
        clouds[:, half::step, half::step] = wobble(total + np.roll(total, -1, axis=2))
        centres = clouds[:, half::step, half::step]
        beside = corners + np.roll(corners, -1, axis=2)
        clouds[:, ::step, half::step] = wobble(centres + np.roll(centres, 1, axis=1) + beside)
        below = corners + np.roll(corners, -1, axis=1)
        clouds[:, half::step, ::step] = wobble(centres + np.roll(centres, 1, axis=2) + below)
        step, wibble = half, wibble / decay
    clouds -= clouds.min((1, 2), keepdims=True)
    return clouds / clouds.max((1, 2), keepdims=True)


def _sample(x: np.ndarray, places: np.ndarray, align_corners: bool) -> np.ndarray:
    """Values of images ``[B, C, H, W]`` at `places` ``[B, H, W, 2]``, column and row, bilinearly.

    Beyond its border an image is continued by its reflection, in which the last pixel occurs again, unless
    `align_corners`.
    """
    size = np.array([x.shape[3], x.shape[2]])
    grid = 2 * places / (size - 1) - 1 if align_corners else (2 * places + 1) / size - 1
    sampled = F.grid_sample(
        torch.from_numpy(x), torch.from_numpy(grid), padding_mode="reflection", align_corners=align_corners
    )
    return sampled.numpy()


def _with_pillow(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What becomes of images ``[B, C, H, W]`` as 8-bit pictures."""
    pictures = np.floor(255 * x + _WATER).astype(np.uint8).transpose(0, 2, 3, 1)
    grey = x.shape[1] == 1
    changed = [np.asarray(change(Image.fromarray(picture[..., 0] if grey else picture))) for picture in pictures]
    return np.stack(changed).reshape(pictures.shape).transpose(0, 3, 1, 2) / 255
