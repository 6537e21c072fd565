"""Folders and lists of images: parts, classes, order, and what is passed over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.data.layouts import write_image
from uncertainty_est.data.source import SPLIT_NAMES, Split
from uncertainty_est.data.sources.image_folder import ImageFolder
from uncertainty_est.errors import DataError


def folder(root: Path, **more: object) -> ImageFolder:
    return ImageFolder(**{"name": "some", "root": str(root), "shape": (3, 8, 8), **more})  # type: ignore[arg-type]


def levels(split: Split) -> list[int]:
    return split.x[:, 0, 0, 0].tolist()


def test_parts_and_classes(tmp_path: Path) -> None:
    for number, part in enumerate(SPLIT_NAMES):
        write_image(tmp_path / part / "cat" / "b.png", 10 * number + 1)
        write_image(tmp_path / part / "cat" / "a.png", 10 * number)
        write_image(tmp_path / part / "Dog" / "inner" / "a.png", 10 * number + 2)
    source = folder(tmp_path)
    source.prepare()
    assert source.class_names == ["Dog", "cat"]
    for number, part in enumerate(SPLIT_NAMES):
        split = source.split(part)
        assert split.part == part and split.y.tolist() == [0, 1, 1]
        assert levels(split) == [10 * number + i for i in (2, 0, 1)]


def test_a_class_has_the_same_label_in_every_part(tmp_path: Path) -> None:
    for part, name in (("train", "a"), ("train", "b"), ("train", "c"), ("test", "c"), ("test", "a")):
        write_image(tmp_path / part / name / "1.png", ord(name))
    source = folder(tmp_path, val_fraction=0)
    assert source.class_names == ["a", "b", "c"]
    assert source.split("test").y.tolist() == [0, 2]
    train = source.split("train")
    assert sorted(zip(train.y.tolist(), levels(train), strict=True)) == [(i, ord(name)) for i, name in enumerate("abc")]


def test_without_parts_it_is_cut(tmp_path: Path) -> None:
    for number in range(40):
        write_image(tmp_path / f"{number % 2}" / f"{number:02}.png", number)
    splits = [folder(tmp_path).split(name) for name in SPLIT_NAMES]
    assert [len(split) for split in splits] == [28, 4, 8] and {split.part for split in splits} == {"all"}
    assert sorted(sum(map(levels, splits), [])) == list(range(40))
    assert all(y == level % 2 for split in splits for y, level in zip(split.y.tolist(), levels(split), strict=True))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "val", "test"), {"train": (3, "train"), "val": (3, "val"), "test": (3, "test")}),
        (("train", "test"), {"train": (2, "train"), "val": (1, "train"), "test": (3, "test")}),
        (("train", "val"), {"train": (2, "train"), "val": (1, "train"), "test": (3, "test")}),
        (("test",), {"test": (3, "test")}),
        (("val",), {"test": (3, "test")}),
        (("val", "test"), {"val": (3, "val"), "test": (3, "test")}),
        (("train",), {"train": (1, "all"), "val": (1, "all"), "test": (1, "all")}),
    ],
)
def test_which_part_is_which_split(
    parts: tuple[str, ...], expected: dict[str, tuple[int, str]], tmp_path: Path
) -> None:
    for part in parts:
        for number in range(3):
            write_image(tmp_path / part / f"{number}.png", number)
    source = folder(tmp_path, val_fraction=1 / 3, test_fraction=1 / 3)
    found = {}
    for name in SPLIT_NAMES:
        try:
            split = source.split(name)
        except DataError as error:
            assert f"no {name if 'val' in parts and 'test' in parts else 'train'} part there" in str(error)
        else:
            found[name] = len(split), split.part
    assert found == expected


def test_flat_nested_and_hidden(tmp_path: Path) -> None:
    """A published archive holds one folder in another, and remains of the system that packed it."""
    inner = tmp_path / "Outer" / "Inner"
    for number in range(12):
        write_image(inner / f"{number:02}.PNG", number)
    for name in ("._00.png", ".DS_Store", "readme.txt", "Thumbs.db", "00.png.part"):
        (inner / name).write_bytes(b"no picture")
    (tmp_path / "Outer" / ".git").mkdir()
    source = folder(tmp_path, folders=["absent", "Outer"], val_fraction=0.5, test_fraction=0.5)
    splits = [source.split(name) for name in ("val", "test")]
    assert sorted(sum(map(levels, splits), [])) == list(range(12)) and source.class_names == []
    assert all((split.y == -1).all() for split in splits)


def test_known_damaged_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        write_image(tmp_path / "A" / f"{number}.png", number)
        write_image(tmp_path / "B" / f"{number}.png", number + 5)
    (tmp_path / "B" / "3.png").write_bytes(b"")
    source = folder(tmp_path, leave_out=["B/3.png", "B/of another release.png"], val_fraction=0, test_fraction=1)
    with caplog.at_level(logging.INFO):
        split = source.split("test")
    assert sorted(levels(split)) == [0, 1, 2, 3, 4, 5, 6, 7, 9] and split.y.bincount().tolist() == [5, 4]
    assert "some: 1 files that are known to be damaged are left out" in caplog.text


def test_lists_win_over_folders(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / "images" / "some" / "of a class" / f"{number}.png", number)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "test.txt").write_text("some/of a class/4.png 2\nsome/of a class/1.png 0\n")
    (tmp_path / "lists" / "val.txt").write_text("some/of a class/5.png -1\n")
    lists = {part: f"lists/{part}.txt" for part in SPLIT_NAMES}
    source = folder(tmp_path, folders=["images/some"], lists=lists, list_folder="images")
    source.prepare()
    test, val = source.split("test"), source.split("val")
    assert (levels(test), test.y.tolist(), levels(val), val.y.tolist()) == ([4, 1], [2, 0], [5], [-1])
    with pytest.raises(DataError, match="no train part there .there are: val, test"):
        source.split("train")
    (tmp_path / "lists" / "val.txt").write_text("some/of a class/5.png\n")
    with pytest.raises(DataError, match=r"val.txt: has the line 'some.*5.png', which is not '<path> <label>'; get"):
        folder(tmp_path, lists=lists, list_folder="images").split("val")
    for file in (tmp_path / "lists").iterdir():
        file.unlink()
    assert len(folder(tmp_path, folders=["images/some"], lists=lists, test_fraction=0.9).split("test")) == 5
    with pytest.raises(ValueError, match="parts and lists are of 'train', 'val' and 'test', got 'dev'"):
        folder(tmp_path, lists={"dev": "a.txt"})


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    source = folder(tmp_path, folders=["a", "b"], lists={"test": "c.txt"}, page="https://example.org/some")
    for attempt in (source.prepare, lambda: source.split("test")):
        with pytest.raises(DataError) as error:
            attempt()
        text = str(error.value)
        assert "get the data set from https://example.org/some and put it at" in text and "\n" not in text
        assert all(f"'{tmp_path / name}'" in text for name in ("a", "b", "c.txt"))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=f"some: no images in {tmp_path / 'a'}"):
        folder(tmp_path, folders=["a", "b"]).split("test")


def test_classes_and_max_items_apply(tmp_path: Path) -> None:
    for number in range(30):
        write_image(tmp_path / "train" / "abc"[number % 3] / f"{number:02}.png", number)
        write_image(tmp_path / "test" / "abc"[number % 3] / f"{number:02}.png", number)
    source = folder(tmp_path, classes=[2, 0], max_items=7)
    split = source.split("test")
    assert len(split) == 7 and set(split.y.tolist()) == {0, 1}
    assert all((level % 3, y) in ((2, 0), (0, 1)) for level, y in zip(levels(split), split.y.tolist(), strict=True))
    assert torch.equal(split.x, folder(tmp_path, classes=[2, 0], max_items=7).split("test").x)
