"""Bundled images and the conversion to the shape asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.image import Digits, PhotoPatches
from uncertainty_est.data.sources.shapes import fit_images, to_nchw
from uncertainty_est.errors import DataError


def test_digits_are_scikit_learns_on_the_scale_of_bytes() -> None:
    split = Digits(shape=[1, 8, 8]).split("train")
    reference = load_digits()
    expected = np.rint(reference.images[split.indices] * 255 / 16)
    assert np.array_equal(split.x[:, 0], expected)
    assert np.array_equal(split.y, reference.target[split.indices])
    assert split.x.max() == 255 and split.x.min() == 0


def test_holdout_digits_share_no_image() -> None:
    known = Digits(shape=[1, 8, 8], classes=range(8))
    unknown = Digits(shape=[1, 8, 8], classes=[8, 9], val_fraction=0.2, test_fraction=0.8)
    known_items = {i for name in SPLIT_NAMES for i in known.split(name).indices.tolist()}
    unknown_items = {i for name in ("val", "test") for i in unknown.split(name).indices.tolist()}
    assert not known_items & unknown_items and len(known_items | unknown_items) == 1797
    target = load_digits().target
    split = unknown.split("test")
    assert np.array_equal(split.y + 8, target[split.indices])


@pytest.mark.parametrize(("size", "count"), [(8, 2 * 53 * 80), (32, 2 * 13 * 20)])
def test_photo_patches_are_all_tiles_in_reading_order(size: int, count: int) -> None:
    x, y = PhotoPatches(shape=[3, size, size]).load("all")
    assert x.shape == (count, 3, size, size) and y.bincount().tolist() == [count // 2] * 2
    photo = load_sample_images().images[1]
    columns = 640 // size
    tile = count // 2 + 2 * columns + 5  # second photograph, third row, sixth column
    expected = photo[2 * size : 3 * size, 5 * size : 6 * size]
    assert np.array_equal(x[tile].permute(1, 2, 0), expected)


def test_a_photograph_is_too_small_for_a_huge_tile() -> None:
    with pytest.raises(DataError, match="no tile of 500x500 pixels fits"):
        PhotoPatches(shape=[3, 500, 500]).prepare()


def test_layouts_become_nchw() -> None:
    x = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    assert to_nchw(x[..., 0]).shape == (2, 1, 4, 5)
    assert torch.equal(to_nchw(x)[1, 2], x[1, :, :, 2])
    assert torch.equal(to_nchw(x.permute(0, 3, 1, 2)), x.permute(0, 3, 1, 2))


def test_colour_becomes_grey_as_pillow_does_it_and_grey_is_repeated() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8))
    pillow = np.asarray(Image.fromarray(x[0].permute(1, 2, 0).numpy()).convert("L")).astype(int)
    grey = fit_images(x, [1, 16, 16], "test")
    assert np.abs(grey[0, 0].numpy().astype(int) - pillow).max() <= 1
    colour = fit_images(grey, [3, 16, 16], "test")
    assert all(torch.equal(colour[:, c : c + 1], grey) for c in range(3))


@pytest.mark.parametrize("size", [(8, 8), (14, 20), (40, 40)])
def test_the_resize_is_pillows_antialiased_bilinear_one(size: tuple[int, int]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 28, 40), dtype=np.uint8))
    if size[0] == size[1]:
        x = x[..., :28]
    ours = fit_images(x, [1, *size], "test")
    for i in range(3):
        image = Image.fromarray(x[i, 0].numpy())
        pillow = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        assert np.abs(ours[i, 0].numpy().astype(int) - pillow.astype(int)).max() <= 1


def test_another_aspect_ratio_is_cropped_at_the_centre() -> None:
    x = torch.zeros(1, 1, 10, 30, dtype=torch.uint8)
    x[..., 10:20] = 200
    assert (fit_images(x, [1, 10, 10], "test") == 200).all()
    assert (fit_images(x, [1, 5, 5], "test")[..., 1:4] == 200).all()


def test_an_image_that_fits_is_not_touched_and_many_chunks_keep_their_order() -> None:
    x = torch.arange(5000).remainder(251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    assert torch.equal(fit_images(x, [1, 4, 4], "test"), x)


@pytest.mark.parametrize("shape", [[8], [2, 8, 8], [1, 8], [1, 0, 8]])
def test_what_is_no_shape_of_an_image_is_refused(shape: list[int]) -> None:
    with pytest.raises(DataError, match="holds images and cannot be given the shape"):
        Digits(shape=shape).split("train")
