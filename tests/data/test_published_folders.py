"""Published sets of image files, in the layouts of their archives, as configs/source names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.conftest import CONFIGS
from tests.data import layouts
from uncertainty_est.data.source import SPLIT_NAMES, Source, SplitName
from uncertainty_est.errors import DataError


def source(name: str, root: Path, shape: tuple[int, ...] = (3, 32, 32)) -> Source:
    fixed = {"data_shape": shape, "data_root": str(root), "split_seed": 1}
    return instantiate(
        OmegaConf.create({"fixed": fixed, "node": OmegaConf.load(CONFIGS / "source" / f"{name}.yaml")}).node
    )


def levels(name: str, root: Path, split: SplitName = "test") -> list[int]:
    return source(name, root).split(split).x[:, 0, 16, 16].tolist()


@pytest.mark.parametrize("name", ["tiny_imagenet_crop", "tiny_imagenet_resize", "lsun_crop", "lsun_resize", "isun"])
def test_odins_release(name: str, tmp_path: Path) -> None:
    """A tenth for choosing settings, as ODIN has it."""
    layouts.write_odin_release(tmp_path)
    val, test = levels(name, tmp_path, "val"), levels(name, tmp_path)
    assert (len(val), sorted(val + test)) == (1, list(range(10)))
    assert (source(name, tmp_path).split("test").y == -1).all()
    with pytest.raises(DataError, match="its train split is empty"):
        source(name, tmp_path).split("train")


def test_notmnist_without_its_two_empty_files(tmp_path: Path) -> None:
    layouts.write_notmnist(tmp_path)
    splits = [source("notmnist", tmp_path, (1, 28, 28)).split(name) for name in ("val", "test")]
    assert torch.cat([split.y for split in splits]).bincount().tolist() == [2] * 10


@pytest.mark.parametrize("sorted_into_folders", [False, True])
def test_tiny_imagenet_tells_classes_by_a_table(sorted_into_folders: bool, tmp_path: Path) -> None:
    layouts.write_tiny_imagenet(tmp_path)
    (tmp_path / "tiny-imagenet-200" / "train" / ".cache").mkdir()  # no class
    val = tmp_path / "tiny-imagenet-200" / "val"
    if sorted_into_folders:
        for line in (val / "val_annotations.txt").read_text().splitlines():
            file, name = line.split("\t")[:2]
            (val / name / "images").mkdir(parents=True, exist_ok=True)
            (val / "images" / file).rename(val / name / "images" / file)
        (val / "val_annotations.txt").unlink()
        (val / "images").rmdir()
    tiny = source("tiny_imagenet", tmp_path, (3, 64, 64))
    splits = {name: tiny.split(name) for name in SPLIT_NAMES}
    assert {name: (len(split), split.part) for name, split in splits.items()} == {
        "train": (27, "train"), "val": (3, "train"), "test": (6, "test")
    }  # fmt: skip
    test = splits["test"]
    assert dict(zip(test.x[:, 0, 0, 0].tolist(), test.y.tolist(), strict=True)) == {i: 2 - i % 3 for i in range(6)}
    assert torch.cat([splits["train"].y, splits["val"].y]).bincount().tolist() == [10] * 3


def test_a_table_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    layouts.write_tiny_imagenet(tmp_path)
    table = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    table.write_text("0.png\tn01443537\t0\t0\t1\t1\n1.png\tn00000000\t0\t0\t1\t1\n")
    with pytest.raises(
        DataError, match="val_annotations.txt: has the line '1.png.*', which names no class of the training images; get"
    ):
        source("tiny_imagenet", tmp_path).split("test")
    (tmp_path / "tiny-imagenet-200" / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="tiny_imagenet: no train part there, which names the classes; get"):
        source("tiny_imagenet", tmp_path).split("test")


@pytest.mark.parametrize("name", layouts.OPENOOD_SETS)
def test_openoods_sets_by_folder_and_by_list(name: str, tmp_path: Path) -> None:
    name = name.split("/")[0]
    layouts.write_openood_images(tmp_path)
    by_folder = levels(name, tmp_path) + levels(name, tmp_path, "val")
    assert sorted(by_folder) == list(range(10))
    layouts.write_openood_lists(tmp_path)
    file = tmp_path / "benchmark_imglist" / "imagenet" / f"test_{name}.txt"
    listed = [int(line.rpartition("/")[2].split(".")[0]) for line in file.read_text().splitlines()]
    assert levels(name, tmp_path) == listed and len(listed) == 8
    if name == "openimage_o":
        assert sorted(listed + levels(name, tmp_path, "val")) == list(range(10))


@pytest.mark.parametrize("lists", [False, True])
def test_imagenets_validation_images_are_tested_on(lists: bool, tmp_path: Path) -> None:
    layouts.write_openood_images(tmp_path)
    if lists:
        layouts.write_openood_lists(tmp_path)
    train, test = (source("imagenet", tmp_path, (3, 224, 224)).split(name) for name in ("train", "test"))
    assert train.x.shape == (20, 3, 224, 224) and train.y.bincount().tolist() == [10, 10]
    assert sorted(test.x[:, 0, 0, 0].tolist()) == sorted(2 * list(range(5 if lists else 0, 10)))


@pytest.mark.parametrize("classes", [10, 100])
def test_corrupted_cifar(classes: int, tmp_path: Path) -> None:
    layouts.write_corrupted_cifar(tmp_path, classes)
    name = f"cifar{classes}_c"
    everything = source(name, tmp_path)
    everything.prepare()
    test = everything.split("test")
    number = torch.arange(6)
    expected = torch.cat([100 * c + 10 * s + number for c in (0, 1) for s in range(1, 6)])
    assert test.x[:, 2, 31, 31].tolist() == expected.tolist() and test.y.tolist() == number.tolist() * 10
    with pytest.raises(DataError, match="no split from a train part, since it holds corrupted test images"):
        everything.split("val")
    node = OmegaConf.load(CONFIGS / "source" / f"{name}.yaml")
    fixed = {"data_shape": [1, 28, 28], "data_root": str(tmp_path), "split_seed": 1}
    one = {"corruption": "snow", "severity": 4, "max_items": 3}
    snow = instantiate(OmegaConf.create({"fixed": fixed, "node": OmegaConf.merge(node, one)}).node).split("test")
    assert snow.x[:, 0, 0, 0].tolist() == [140 + i for i in snow.indices] and snow.y.tolist() == snow.indices.tolist()
    one["corruption"] = "show"
    with pytest.raises(DataError, match=r"there is no .*show.npy \(there are: fog, snow; did you mean 'snow'\?\)"):
        instantiate(OmegaConf.create({"fixed": fixed, "node": OmegaConf.merge(node, one)}).node).prepare()


def test_corrupted_cifar_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no arrays in .*CIFAR-10-C; get the data set from https://zenodo.org"):
        source("cifar10_c", tmp_path).prepare()
    layouts.write_corrupted_cifar(tmp_path, 10)
    file = tmp_path / "CIFAR-10-C" / "snow.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match="snow.npy: cannot be read .*; get the data set again"):
        source("cifar10_c", tmp_path).split("test")
    file.write_bytes(whole)
    for array in (np.load(file) / 255, np.load(file)[..., 0]):
        np.save(file, array)
        with pytest.raises(
            DataError, match=r"snow.npy: must hold uint8 images \(N, H, W, 3\), got .* get the data set"
        ):
            source("cifar10_c", tmp_path).split("test")
