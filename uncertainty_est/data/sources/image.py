"""Images that scikit-learn bundles, so that they are there without any file or network."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import check_image_shape, fit_images, to_nchw
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import Part


class Digits(PartitionedSource):
    """1,797 real handwritten digits of 8x8 pixels, bundled with scikit-learn; levels 0..16 become 0..255.

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI Machine Learning
        Repository, 1998).
    """

    name = "digits"

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        bunch = load_digits()
        levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        return fit_images(to_nchw(levels), self.shape, self.name), torch.as_tensor(bunch.target, dtype=torch.int64)


class PhotoPatches(PartitionedSource):
    """Tiles of two photographs, of a temple and of a flower, that scikit-learn bundles.

    The tiles have the size asked for, do not overlap and keep the photographs' pixels; the label is the
    number of the photograph.
    """

    name = "photo_patches"

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        check_image_shape(self.shape, self.name)
        _, height, width = self.shape
        tiles, labels = [], []
        for label, photo in enumerate(load_sample_images().images):
            rows, columns = photo.shape[0] // height, photo.shape[1] // width
            if not rows * columns:
                raise DataError(
                    f"{self.name}: no tile of {height}x{width} pixels fits into a photograph of"
                    f" {photo.shape[0]}x{photo.shape[1]}; use a smaller fixed.data_shape or another data set"
                )
            grid = photo[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
            tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, height, width, 3))
            labels += [label] * (rows * columns)
        x = to_nchw(np.concatenate(tiles))
        return fit_images(x, self.shape, self.name), torch.tensor(labels)
