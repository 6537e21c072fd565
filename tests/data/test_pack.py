"""One's own data sets as .npz files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import real_data
from tests.data.layouts import TEST, TRAIN, images, labels, write_pack
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.pack import NpzPack
from uncertainty_est.errors import DataError


def good() -> dict[str, Any]:
    return {
        "x_train": images(TRAIN, 8, 8),
        "y_train": labels(TRAIN, 3),
        "x_test": images(TEST, 8, 8, seed=1),
        "y_test": labels(TEST, 3),
    }


def pack(folder: Path, shape: tuple[int, ...] = (1, 8, 8), **arrays: Any) -> NpzPack:
    np.savez(folder / "mine.npz", **arrays)
    return NpzPack(str(folder), "mine", shape=shape)


def test_images_without_and_with_a_channel_axis(tmp_path: Path) -> None:
    source = pack(tmp_path, **good())
    source.prepare()
    assert np.array_equal(source.split("test").x[:, 0], good()["x_test"])
    train = source.split("train")
    assert np.array_equal(train.y, good()["y_train"][train.indices])
    write_pack(tmp_path / "colour.npz", shape=(8, 6, 3))
    split = NpzPack(str(tmp_path), "colour", shape=[3, 8, 6]).split("test")
    assert np.array_equal(split.x, images(TEST, 8, 6, 3, seed=1).transpose(0, 3, 1, 2))
    assert NpzPack(str(tmp_path), "colour", shape=[1, 16, 16]).split("val").x.shape == (4, 1, 16, 16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables(tmp_path: Path, dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).normal(size=(TRAIN, 4)).astype(dtype)
    source = pack(tmp_path, (4,), **good() | {"x_train": x, "x_test": x[:TEST]})
    split = source.split("train")
    assert np.array_equal(split.x, x[split.indices].astype(np.float32))


def test_the_test_part_may_stand_alone_with_or_without_labels(tmp_path: Path) -> None:
    arrays = good()
    source = pack(tmp_path, x_test=arrays["x_test"], y_test=arrays["y_test"])
    source.prepare()
    assert np.array_equal(source.split("test").y, arrays["y_test"])
    with pytest.raises(DataError, match=r"mine\.npz: has no 'x_train'"):
        source.split("val")
    assert (pack(tmp_path, x_test=arrays["x_test"]).split("test").y == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "has no 'y_train'"),
        ({"x_train": images(TRAIN, 8, 8).astype(np.float32)}, "x_train must hold uint8 images"),
        ({"x_train": images(TRAIN, 8, 8, 2)}, "x_train must hold uint8 images"),
        ({"x_train": images(TRAIN, 8)}, "x_train must hold uint8 images"),
        ({"y_train": labels(TRAIN - 1, 3)}, "y_train has 39 labels for the 40 rows of x_train"),
        ({"y_train": labels(TRAIN, 3) - 1}, "y_train has the label -1"),
        ({"y_train": labels(TRAIN, 3).astype(float)}, "y_train must hold integers"),
        ({"y_train": labels(TRAIN, 3)[:, None]}, "y_train must hold integers of shape"),
        ({"x_train": images(0, 8, 8), "y_train": labels(0, 3)}, "x_train has no rows"),
        ({"x_train": np.uint8(3)}, "'x_train' holds a single number"),
        ({"x_train": np.array([object()] * TRAIN)}, "'x_train' cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (good() | change).items() if value is not None}
    source = pack(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as error:
        source.split("train")
    assert str(tmp_path / "mine.npz") in str(error.value)
    assert len(source.split("test")) == TEST  # the other part is not concerned


@pytest.mark.parametrize(
    ("x", "shape", "message"),
    [
        (np.zeros((TRAIN, 4), np.int64), (4,), "x_train must be a table"),
        (images(TRAIN, 4), (4,), "x_train must be a table"),
        (np.zeros((TRAIN, 4), np.float32), (5,), r"4 features and cannot be given the shape \(5,\)"),
        (np.full((TRAIN, 4), np.nan, np.float32), (4,), "NaN or infinite"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(tmp_path, shape, x_train=x, y_train=labels(TRAIN, 3)).split("train")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    source = pack(tmp_path, **good())
    content = source.path.read_bytes()
    source.path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"mine\.npz: is damaged or no \.npz file"):
        source.prepare()


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mine.npz", **good())
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    content[500:600] = bytes(100)
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.npz: 'x_train' cannot be read"):
        NpzPack(str(tmp_path), "mine", shape=[1, 8, 8]).split("train")


def test_missing_and_misnamed_files(tmp_path: Path) -> None:
    source = NpzPack(str(tmp_path), "mine", shape=[1, 8, 8])
    with pytest.raises(DataError, match=r"mine\.npz: cannot be opened \(No such file"):
        source.prepare()
    source.path.mkdir()
    with pytest.raises(DataError, match=r"mine\.npz: cannot be opened \(Is a directory"):
        source.prepare()
    source.path.rmdir()
    with source.path.open("wb") as stream:
        np.save(stream, images(3, 8, 8))
    with pytest.raises(DataError, match="holds a single array"):
        source.prepare()
    with pytest.raises(DataError, match="holds neither x_train nor x_test"):
        pack(tmp_path, images=images(3, 8, 8)).prepare()


def test_real_tiny_imagenet() -> None:
    source = NpzPack(str(real_data()), "tiny_imagenet32", shape=[3, 32, 32])
    assert [len(source.split(name)) for name in SPLIT_NAMES] == [900, 100, 2000]
