"""A set of images under one of the common corruptions, with its own labels: data that have shifted."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from uncertainty_est.data import corruptions
from uncertainty_est.data.source import Source, Split, SplitName
from uncertainty_est.data.sources.shapes import check_image_shape
from uncertainty_est.errors import DataError


class Corrupted(Source):
    """Another set's images, corrupted in the shape in which the network sees them; splits and labels are its own.

    An image is always corrupted alike, whatever the split, its size and the seed of its cut. A split is held in memory.

    Args:
        source: the set of images.
        corruption: one of the 15 of :mod:`uncertainty_est.data.corruptions`.
        severity: 1 to 5.

    Raises:
        ValueError: an unknown corruption or severity.
    """

    def __init__(self, source: Source, corruption: str, severity: int) -> None:
        corruptions.check(corruption, severity)
        self.source = source
        self.corruption = corruption
        self.severity = severity
        self.name = f"{source.name}_{corruption}_{severity}"
        self.shape = source.shape
        self.space = source.space

    def prepare(self) -> None:
        check_image_shape(self.shape, self.name)
        if self.space != "raw":
            raise DataError(
                f"{self.name}: {self.source.name} holds the network's input; corruptions are of 8-bit images"
            )
        self.source.prepare()

    def split(self, name: SplitName) -> Split:
        self.prepare()
        split = self.source.split(name)
        key = [zlib.crc32(f"{self.corruption} {split.part}".encode()), self.severity]
        generators = [np.random.default_rng([*key, index]) for index in split.indices.tolist()]
        x = corruptions.corrupt(split.x.numpy(), self.corruption, self.severity, generators)
        return Split(torch.from_numpy(x), split.y, split.indices, split.part)
