"""CIFAR-10-C and CIFAR-100-C as they are published: one array a corruption, five severities in each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import check_image_shape, fit_images, to_nchw
from uncertainty_est.errors import DataError, did_you_mean
from uncertainty_est.own_data import Part

SEVERITIES = 5
_LABELS = "labels"


@dataclass(eq=False, kw_only=True)
class CorruptedCifar(PartitionedSource):
    """Test images of CIFAR, corrupted: files ``<corruption>.npy`` ``[5 N, 32, 32, 3]`` and ``labels.npy``.

    Each file has the N test images five times, from severity 1 to severity 5. There is a test part only.

    Args:
        name: what messages call the set.
        root: folder of the data sets.
        folder: of the files, relative to `root`.
        page: where to get them, for messages.
        corruption: name of a file; ``None`` for all of them.
        severity: 1 to 5; ``None`` for all of them.

    Raises:
        ValueError: another severity.

    References:
        D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
        (ICLR 2019), arXiv:1903.12261.
    """

    official_test = True

    name: str
    root: str
    folder: str
    page: str
    corruption: str | None = None
    severity: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.severity is not None and not 1 <= self.severity <= SEVERITIES:
            raise ValueError(f"severity must be 1 to {SEVERITIES}, got {self.severity}")
        self._path = Path(self.root) / self.folder

    def prepare(self) -> None:
        check_image_shape(self.shape, self.name)
        if not self._files:
            raise DataError(
                f"{self.name}: there are no arrays in {self._path}; get the data set from {self.page} and put it there"
            )
        if self.corruption is not None and self.corruption not in self._files:
            raise DataError(
                f"{self.name}: there is no {self._path / self.corruption}.npy (there are: {', '.join(self._files)}"
                f"{did_you_mean(self.corruption, self._files)})"
            )

    def labels_of(self, part: Part) -> Tensor:
        self.prepare()
        if part != "test":
            raise DataError(
                f"{self.name}: there is no split from a {part} part, since it holds corrupted test images; use it for"
                " testing only"
            )
        return self._labels.repeat(len(self._chosen))

    def items_of(self, part: Part, rows: Tensor) -> Tensor:
        each = len(self._labels)
        x = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for number, file in enumerate(self._chosen):
            array = self._read(file)
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
                raise DataError(
                    f"{self._path / file}.npy: must hold uint8 images (N, H, W, 3), got {array.dtype} of shape"
                    f" {array.shape}; get the data set again from {self.page}"
                )
            if len(array) != SEVERITIES * self._images:
                raise DataError(
                    f"{self._path / file}.npy: holds {len(array)} images for {SEVERITIES * self._images} labels; get"
                    f" the data set again from {self.page}"
                )
            mine = (rows // each == number).nonzero()[:, 0]
            if len(mine):
                images = array[(self._first + rows[mine] % each).numpy()]
                x[mine] = fit_images(to_nchw(images), self.shape, self.name)
        return x

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        y = self.labels_of(part)
        return self.items_of(part, torch.arange(len(y))), y

    @cached_property
    def _files(self) -> list[str]:
        return sorted(path.stem for path in self._path.glob("*.npy") if path.stem != _LABELS)

    @property
    def _chosen(self) -> list[str]:
        return self._files if self.corruption is None else [self.corruption]

    @cached_property
    def _all_labels(self) -> Tensor:
        y = self._read(_LABELS)
        if y.ndim != 1 or len(y) % SEVERITIES:
            raise DataError(f"{self._path / _LABELS}.npy: must hold the labels five times over, got {y.shape}")
        return torch.from_numpy(y.astype(np.int64))

    @property
    def _images(self) -> int:
        """Number of images of one severity."""
        return len(self._all_labels) // SEVERITIES

    @property
    def _first(self) -> int:
        """Position of the first image asked for in every file."""
        return 0 if self.severity is None else (self.severity - 1) * self._images

    @property
    def _labels(self) -> Tensor:
        """Labels of the images asked for of one file."""
        return self._all_labels if self.severity is None else self._all_labels[self._first :][: self._images]

    def _read(self, file: str) -> np.ndarray:
        """An array, mapped."""
        path = self._path / f"{file}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); get the data set again from {self.page}") from error
