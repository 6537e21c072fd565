"""One's own data sets as .npz files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import real_data
from tests.data.layouts import TEST, TRAIN, images, labels, write_pack
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.pack import NpzPack
from uncertainty_est.data.transforms import TableTransform
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


def in_three_parts() -> dict[str, Any]:
    return good() | {"x_val": images(9, 8, 8, seed=2), "y_val": labels(9, 3)}


def test_a_validation_part_of_its_own_leaves_the_training_part_whole(tmp_path: Path) -> None:
    arrays = in_three_parts()
    source = pack(tmp_path, **arrays)
    source.prepare()
    for name in SPLIT_NAMES:
        split = source.split(name)
        assert split.part == name
        assert split.indices.tolist() == list(range(len(arrays[f"y_{name}"])))
        assert np.array_equal(split.x[:, 0], arrays[f"x_{name}"])
        assert np.array_equal(split.y, arrays[f"y_{name}"])
    # Neither the seed nor the fraction cuts anything; classes and max_items keep what they keep elsewhere.
    other = NpzPack(str(tmp_path), "mine", shape=[1, 8, 8], split_seed=7, val_fraction=0.5)
    assert all(np.array_equal(other.split(name).indices, source.split(name).indices) for name in SPLIT_NAMES)
    few = NpzPack(str(tmp_path), "mine", shape=[1, 8, 8], classes=[2, 0], max_items=3)
    for name in SPLIT_NAMES:
        split = few.split(name)
        assert len(split) == len(split.indices.unique()) == 3
        assert np.array_equal(split.y, np.where(arrays[f"y_{name}"][split.indices] == 2, 0, 1))


def tables_in_three_parts() -> dict[str, Any]:
    return {key: x.reshape(len(x), -1) / 255 if x.ndim > 1 else x for key, x in in_three_parts().items()}


def module(source: NpzPack) -> OODDataModule:
    return OODDataModule(
        id_source=source,
        transform=TableTransform("standard"),
        data_shape=source.shape,
        num_classes=3,
        batch_size=8,
        eval_batch_size=8,
        val_ood_sources={},
        test_ood_sources={},
        seed=0,
    )


def test_the_data_module_takes_the_three_parts_as_disjoint(tmp_path: Path) -> None:
    """Equal positions in different parts are different items, and the transform sees the training part only."""
    data = module(pack(tmp_path, (64,), **tables_in_three_parts()))
    data.setup("fit")
    assert {name: len(rows) for name, rows in data.split_indices().items()} == {"train": TRAIN, "val": 9, "test": TEST}
    assert all(np.array_equal(rows, np.arange(len(rows))) for rows in data.split_indices().values())
    x = np.concatenate([x.numpy() for x, _ in data.plain_loader("train")])
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    assert sum(len(batch["id"][1]) for batch in data.train_dataloader()) == TRAIN
    assert sum(len(batch["id"][1]) for batch in data.val_dataloader()) == 9


@pytest.mark.parametrize("y", ["all -1", "left out"])
def test_an_ood_set_without_training_part_and_labels(tmp_path: Path, y: str) -> None:
    arrays = {key: x for key, x in in_three_parts().items() if key in ("x_val", "x_test")}
    if y == "all -1":
        arrays |= {"y_val": np.full(9, -1), "y_test": np.full(TEST, -1)}
    source = pack(tmp_path, **arrays)
    source.prepare()
    for name in ("val", "test"):
        split = source.split(name)
        assert np.array_equal(split.x[:, 0], arrays[f"x_{name}"])
        assert (split.y == -1).all() and split.y.dtype == torch.int64
    with pytest.raises(DataError, match=r"mine\.npz: has no 'x_train'"):
        source.split("train")


def test_a_set_without_labels_is_no_in_distribution_set(tmp_path: Path) -> None:
    source = pack(tmp_path, (64,), **tables_in_three_parts() | {"y_train": np.full(TRAIN, -1)})
    assert (source.split("train").y == -1).all()
    with pytest.raises(DataError, match="mine: labels of its train split range from -1 to -1"):
        module(source).setup("fit")
    with pytest.raises(DataError, match=r"no items of the classes \[0\]"):
        NpzPack(str(tmp_path), "mine", shape=[64], classes=[0]).split("train")


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
    with pytest.raises(DataError, match=r"mine_embedded\.npz: .* python -m uncertainty_est\.data\.embed"):
        NpzPack(str(tmp_path), "mine_embedded", shape=[3]).prepare()
    source.path.mkdir()
    with pytest.raises(DataError, match=r"mine\.npz: cannot be opened \(Is a directory"):
        source.prepare()
    source.path.rmdir()
    with source.path.open("wb") as stream:
        np.save(stream, images(3, 8, 8))
    with pytest.raises(DataError, match="holds a single array"):
        source.prepare()
    for key in ("images", "x_val"):
        with pytest.raises(DataError, match="holds neither x_train nor x_test"):
            pack(tmp_path, **{key: images(3, 8, 8)}).prepare()


def test_real_tiny_imagenet() -> None:
    source = NpzPack(str(real_data()), "tiny_imagenet32", shape=[3, 32, 32])
    assert [len(source.split(name)) for name in SPLIT_NAMES] == [900, 100, 2000]
