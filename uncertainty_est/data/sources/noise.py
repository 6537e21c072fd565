"""Sets that are nothing but noise, and sets with the wrong scale.

Every split has draws of its own, determined by `split_seed`, so that two passes see the same items.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from uncertainty_est.data.source import SPLIT_NAMES, Source, Split, SplitName
from uncertainty_est.data.sources.shapes import check_image_shape
from uncertainty_est.errors import DataError

# Images that are floats at once, at most, and values in them.
_CHUNK = 1024
_VALUES = _CHUNK * 3 * 64 * 64


class NoiseSource(Source):
    """Items drawn at random: images are raw uint8, tables are the network's input as they are.

    Args:
        name: what messages call it.
        shape: ``(C, H, W)`` for images, ``(D,)`` for tables.
        split_seed: with the split it determines the items.
        n: number of items in each split.

    Raises:
        ValueError: `n` below 1.
    """

    def __init__(self, *, name: str, shape: Sequence[int], split_seed: int, n: int) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.name = name
        self.shape = tuple(int(size) for size in shape)
        self.space = "raw" if self._is_image else "network"
        self.split_seed = split_seed
        self.n = n

    @property
    def _is_image(self) -> bool:
        return len(self.shape) == 3

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """``[n, *shape]``, uint8 for images, else floats."""

    def prepare(self) -> None:
        if self._is_image:
            check_image_shape(self.shape, self.name)
        elif len(self.shape) != 1:
            raise DataError(f"{self.name}: fixed.data_shape must have 1 or 3 entries, got {self.shape}")

    def split(self, name: SplitName) -> Split:
        self.prepare()
        number = SPLIT_NAMES.index(name)
        x = torch.from_numpy(self.draw(np.random.default_rng([self.split_seed, number])))
        # Positions in one long stream of draws, of which each split has a stretch.
        indices = torch.arange(number * self.n, (number + 1) * self.n)
        return Split(x if self._is_image else x.float(), torch.full((self.n,), -1), indices, "all")


class GaussianNoise(NoiseSource):
    """Images: each value N(127.5, 60^2), as an integer. Tables: each feature N(0, 1).

    Args:
        clip: limit image values to 0..255; ``False`` lets them wrap around modulo 256, as a cast without a
            check does.
    """

    def __init__(self, shape: Sequence[int], split_seed: int = 1, n: int = 10_000, clip: bool = True) -> None:
        super().__init__(name="gaussian_noise", shape=shape, split_seed=split_seed, n=n)
        self.clip = clip

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        if not self._is_image:
            return rng.standard_normal((self.n, *self.shape), dtype=np.float32)
        items = np.empty((self.n, *self.shape), np.uint8)
        for part in np.array_split(items, -(-self.n // _at_once(self.shape))):  # floats take four times the memory
            x = rng.standard_normal(part.shape, dtype=np.float32) * 60 + 127.5
            part[:] = np.rint(x.clip(0, 255)) if self.clip else x.astype(np.int16).astype(np.uint8)
        return items


class UniformNoise(NoiseSource):
    """Images: each value one of the integers 0..255. Tables: each feature U(-reach, reach).

    Args:
        reach: of tables only, in units of the network's inputs.

    Raises:
        ValueError: a reach that is not positive.
    """

    def __init__(self, shape: Sequence[int], split_seed: int = 1, n: int = 10_000, reach: float = 5.0) -> None:
        super().__init__(name="uniform_noise", shape=shape, split_seed=split_seed, n=n)
        if reach <= 0:
            raise ValueError(f"reach must be positive, got {reach}")
        self.reach = reach

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        size = (self.n, *self.shape)
        return (
            rng.integers(0, 256, size, dtype=np.uint8) if self._is_image else rng.uniform(-self.reach, self.reach, size)
        )


class Constant(NoiseSource):
    """One value for the whole item. Images: one of the integers 0..255. Tables: U(-5, 5)."""

    def __init__(self, shape: Sequence[int], split_seed: int = 1, n: int = 10_000) -> None:
        super().__init__(name="constant", shape=shape, split_seed=split_seed, n=n)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        value = rng.integers(0, 256, self.n, dtype=np.uint8) if self._is_image else rng.uniform(-5, 5, self.n)
        item_axes = tuple(range(1, len(self.shape) + 1))
        return np.broadcast_to(np.expand_dims(value, item_axes), (self.n, *self.shape)).copy()


class SmoothedNoise(NoiseSource):
    r"""Images with the pixels of a set's training images, and blotches instead of what they show.

    The pixels of an image drawn from the training split are permuted (alike in all channels), blurred by a Gaussian of
    :math:`\sigma \sim U(1, 2.5)` pixels with reflected borders, and their contrast is raised:
    :math:`\mathrm{sigmoid}(\gamma (u - \tfrac12))`, :math:`\gamma \sim U(5, 30)`, of u in [0, 1].

    Args:
        source: the set of images, most often the in-distribution one.
        split_seed: with the split it determines the items.
        n: number of items in each split.

    References:
        Hein et al., arXiv:1812.05720, Section 5 (the noise of CEDA and ACET). Meinke and Hein, arXiv:1909.12180.
    """

    def __init__(self, source: Source, split_seed: int = 1, n: int = 10_000) -> None:
        super().__init__(name="smoothed_noise", shape=source.shape, split_seed=split_seed, n=n)
        self.source = source

    def prepare(self) -> None:
        check_image_shape(self.shape, self.name)
        self.source.prepare()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        images = self.source.split("train").x.flatten(2).numpy()
        chosen = rng.integers(len(images), size=self.n)
        pixels = np.arange(images.shape[2], dtype=np.int32)
        order = rng.permuted(np.broadcast_to(pixels, (self.n, len(pixels))), axis=1)
        sigma, gamma = rng.uniform(1, 2.5, self.n), rng.uniform(5, 30, self.n)
        items = np.empty((self.n, *self.shape), np.uint8)
        for part in np.array_split(np.arange(self.n), -(-self.n // _at_once(self.shape))):
            permuted = np.take_along_axis(images[chosen[part]], order[part, None], axis=2)
            u = gaussian_blur(permuted.reshape(-1, *self.shape) / 255, sigma[part])
            items[part] = np.rint(255 * expit(gamma[part, None, None, None] * (u - 0.5)))
        return items


def _at_once(shape: Sequence[int]) -> int:
    """How many images of a shape are floats at once."""
    return max(1, min(_CHUNK, _VALUES // math.prod(shape)))


def gaussian_blur(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Images ``[N, C, H, W]``, each blurred by a Gaussian of its own.

    The Gaussian is cut at 4 standard deviations; beyond its border an image is continued by its reflection, in which
    the last pixel occurs again.

    Args:
        x: floating.
        sigma: standard deviations in pixels, ``[N]``.
    """
    rows, columns = (_blur_matrix(size, sigma) for size in x.shape[-2:])
    return rows[:, None] @ x @ columns[:, None].swapaxes(-1, -2)


def _blur_matrix(size: int, sigma: np.ndarray) -> np.ndarray:
    """``[N, size, size]``: each row holds the weights that the pixels of a line have in one of the blurred line."""
    reach = np.floor(4 * sigma + 0.5)[:, None]
    offset = np.arange(-int(reach.max()), int(reach.max()) + 1)
    weight = np.where(np.abs(offset) <= reach, np.exp(-0.5 * (offset / sigma[:, None]) ** 2), 0)
    weight /= weight.sum(1, keepdims=True)
    # Reflections have the period 2 * size: 0 … size - 1, size - 1 … 0.
    position = (np.arange(size)[:, None] + offset) % (2 * size)
    position = np.minimum(position, 2 * size - 1 - position)
    lands = position[..., None] == np.arange(size)  # [row, offset, column]
    return np.tensordot(weight, lands.astype(weight.dtype), axes=(1, 1))


class Unscaled(Source):
    """Another set with values 255 times too large, far outside anything that training saw.

    Images become the network's input with the values 0..255, neither scaled to [0, 1] nor normalised. The
    features of a table are multiplied by 255 before the transform.

    Args:
        source: the set, with its own scale.

    References:
        Charpentier et al., Natural Posterior Network (ICLR 2022), arXiv:2105.04471, the "OODom" sets.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = f"{source.name}_unscaled"
        self.shape = source.shape
        self.space = "network" if len(source.shape) == 3 else source.space

    def prepare(self) -> None:
        self.source.prepare()

    def split(self, name: SplitName) -> Split:
        split = self.source.split(name)
        x: Tensor = split.x.float() if len(self.shape) == 3 else split.x * 255
        return Split(x, split.y, split.indices, split.part)
