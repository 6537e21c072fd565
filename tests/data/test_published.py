"""Published image sets, read offline from small files in their official layouts."""

from __future__ import annotations

import gzip
import pickle
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import scipy.io
import torch

from tests.conftest import real_data
from tests.data import layouts
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.published import TorchvisionImages
from uncertainty_est.errors import DataError

GREY, COLOUR = [1, 28, 28], [3, 32, 32]


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_family(name: str, tmp_path: Path) -> None:
    layouts.write_mnist_like(tmp_path, name, seed=3)
    source = TorchvisionImages(name, str(tmp_path), shape=GREY)
    source.prepare()
    test, train = source.split("test"), source.split("train")
    assert np.array_equal(test.x[:, 0], layouts.images(layouts.TEST, 28, 28, seed=3 + layouts.TEST))
    assert np.array_equal(test.y, layouts.labels(layouts.TEST, 10))
    file = layouts.images(layouts.TRAIN, 28, 28, seed=3 + layouts.TRAIN)
    assert np.array_equal(train.x[:, 0], file[train.indices])
    assert (len(train), len(source.split("val"))) == (36, 4)


def test_emnist_letters_are_turned_upright_and_counted_from_zero(tmp_path: Path) -> None:
    layouts.write_emnist_letters(tmp_path)
    split = TorchvisionImages("EMNIST", str(tmp_path), shape=GREY).split("test")
    file = layouts.images(layouts.TEST, 28, 28, seed=layouts.TEST)
    assert np.array_equal(split.x[:, 0], file.transpose(0, 2, 1))
    assert np.array_equal(split.y, layouts.labels(layouts.TEST, 26))


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(classes: int, published: Callable[[], Path]) -> None:
    root = published()
    split = TorchvisionImages(f"CIFAR{classes}", str(root), shape=COLOUR).split("test")
    folder, file = ("cifar-10-batches-py", "test_batch") if classes == 10 else ("cifar-100-python", "test")
    with (root / folder / file).open("rb") as stream:
        data = pickle.load(stream)["data"]
    # The format: 1024 red, then 1024 green, then 1024 blue values, each in rows of 32.
    assert np.array_equal(split.x, data.reshape(-1, 3, 32, 32))
    assert np.array_equal(split.y, layouts.labels(layouts.TEST, classes))
    assert len(TorchvisionImages(f"CIFAR{classes}", str(root), shape=COLOUR).split("train")) == 36


def test_svhn_label_ten_is_the_digit_zero(published: Callable[[], Path]) -> None:
    root = published()
    split = TorchvisionImages("SVHN", str(root), shape=COLOUR).split("test")
    mat = scipy.io.loadmat(root / "test_32x32.mat")
    assert np.array_equal(split.x, mat["X"].transpose(3, 2, 0, 1))
    assert np.array_equal(split.y, mat["y"][:, 0] % 10) and split.y.max() == 9


def test_svhn_can_be_tested_on_with_the_test_file_alone(published: Callable[[], Path]) -> None:
    root = published()
    (root / "train_32x32.mat").unlink()
    source = TorchvisionImages("SVHN", str(root), shape=COLOUR)
    source.prepare()
    assert len(source.split("test")) == layouts.TEST
    with pytest.raises(DataError, match="SVHN: its train part can neither be read .* nor downloaded"):
        source.split("val")


def test_textures(tmp_path: Path) -> None:
    layouts.write_textures(tmp_path)
    source = TorchvisionImages("DTD", str(tmp_path), shape=COLOUR, val_fraction=0.25)
    x, y = source.load("train")  # the published training and validation subsets
    assert y.tolist() == ([0] * 6 + [1] * 6) * 2
    level = torch.tensor([0] * 6 + [100] * 6 + [30] * 6 + [130] * 6).view(-1, 1, 1, 1)
    assert x.shape == (24, 3, 32, 32) and (x.int() - level).abs().max() <= 2  # JPEG
    test = source.split("test")
    assert (test.x.int() - (60 + 100 * test.y).view(-1, 1, 1, 1)).abs().max() <= 2


def test_a_damaged_texture_is_named(tmp_path: Path) -> None:
    layouts.write_textures(tmp_path)
    (tmp_path / "dtd/dtd/images/banded/banded_test3.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"banded_test3.jpg: cannot be read as an image"):
        TorchvisionImages("DTD", str(tmp_path), shape=COLOUR).split("test")


def test_usps(tmp_path: Path) -> None:
    layouts.write_usps(tmp_path)
    source = TorchvisionImages("USPS", str(tmp_path), shape=[1, 16, 16])
    split = source.split("test")
    assert np.array_equal(split.x[:, 0], layouts.images(layouts.TEST, 16, 16, seed=layouts.TEST))
    assert np.array_equal(split.y, layouts.labels(layouts.TEST, 10)) and len(source.split("train")) == 36


def test_omniglot_has_light_strokes_and_a_class_a_character(published: Callable[[], Path]) -> None:
    root = published()
    source = TorchvisionImages("Omniglot", str(root), shape=GREY, val_fraction=0.25)
    source.prepare()
    test = source.split("test")
    assert test.y.tolist() == [0, 0, 1, 1, 2, 2] and len(source.split("val")) == 3
    corner, stroke = test.x[:, 0, 0, 0], test.x[:, 0, 14, 14]
    assert (corner == 0).all() and (stroke == 255).all()


@pytest.mark.parametrize(
    "name",
    ["MNIST", "FashionMNIST", "KMNIST", "EMNIST", "CIFAR10", "CIFAR100", "SVHN", "DTD", "USPS", "Omniglot"],
)
def test_missing_files_that_cannot_be_downloaded_give_one_sentence(name: str, tmp_path: Path) -> None:
    source = TorchvisionImages(name, str(tmp_path), shape=COLOUR)
    for attempt in (source.prepare, lambda: source.split("test")):
        with pytest.raises(DataError) as error:
            attempt()
        text = str(error.value)
        assert re.match(rf"{name}: its (train|test) part can neither be read below '.*' nor downloaded", text)
        assert "; get it from http" in text and str(tmp_path) in text and "\n" not in text


def test_one_process_downloads_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Lock()
    opened = []

    def usps(folder: Path, train: bool, download: bool) -> None:
        assert busy.acquire(blocking=False), "two at once"
        time.sleep(0.05)
        opened.append(train)
        busy.release()

    monkeypatch.setattr("torchvision.datasets.USPS", usps)
    sources = [TorchvisionImages("USPS", str(tmp_path), shape=GREY) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(TorchvisionImages.prepare, sources))
    assert sorted(opened) == [False] * 3 + [True] * 3
    (tmp_path / "file").touch()
    TorchvisionImages("USPS", str(tmp_path / "file" / "below"), shape=GREY).prepare()  # no lock can be there
    assert len(opened) == 8


def test_a_file_without_images_is_refused_and_the_test_part_still_works(tmp_path: Path) -> None:
    layouts.write_mnist_like(tmp_path, "KMNIST")
    folder = tmp_path / "KMNIST" / "raw"
    layouts.write_idx(folder / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    layouts.write_idx(folder / "train-labels-idx1-ubyte", np.zeros(0))
    source = TorchvisionImages("KMNIST", str(tmp_path), shape=GREY)
    source.prepare()
    assert len(source.split("test")) == layouts.TEST
    for name in ("train", "val"):
        with pytest.raises(DataError, match=r"holds 0 images, .*validation images come from the training part"):
            source.split(name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    layouts.write_mnist_like(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="MNIST: its test part can neither be read"):
        TorchvisionImages("MNIST", str(tmp_path), shape=GREY).split("test")


def test_gzipped_garbage_is_no_data_set(tmp_path: Path) -> None:
    layouts.write_mnist_like(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(gzip.compress(bytes(100)))
    with pytest.raises(DataError, match="MNIST: its test part"):
        TorchvisionImages("MNIST", str(tmp_path), shape=GREY).split("test")


def test_a_pack_of_the_sets_name_is_preferred(published: Callable[[], Path]) -> None:
    root = published()
    layouts.write_pack(root / "cifar10.npz", classes=7)
    source = TorchvisionImages("CIFAR10", str(root), shape=COLOUR)
    source.prepare()
    split = source.split("test")
    assert np.array_equal(split.x, layouts.images(layouts.TEST, 32, 32, 3, seed=1).transpose(0, 3, 1, 2))
    assert np.array_equal(split.y, layouts.labels(layouts.TEST, 7))


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset must be one of MNIST, .*, got 'STL10'"):
        TorchvisionImages("STL10", "data", shape=COLOUR)


@pytest.mark.parametrize(
    ("name", "sizes"), [("MNIST", (54_000, 6_000, 10_000)), ("FashionMNIST", (54_000, 6_000, 10_000))]
)
def test_real_mnist_and_fashionmnist(name: str, sizes: tuple[int, ...]) -> None:
    source = TorchvisionImages(name, str(real_data()), shape=GREY)
    splits = [source.split(split) for split in SPLIT_NAMES]
    assert tuple(map(len, splits)) == sizes
    assert all(split.y.unique().tolist() == list(range(10)) for split in splits)
    mean = splits[0].x.double().mean() / 255
    assert mean == pytest.approx(0.1307 if name == "MNIST" else 0.2860, abs=5e-4)


def test_real_emnist_is_upright() -> None:
    """An I is tall and narrow, whichever way the file has it."""
    split = TorchvisionImages("EMNIST", str(real_data()), shape=GREY).split("test")
    assert split.y.bincount().tolist() == [800] * 26
    ink = split.x[split.y == 8, 0] > 64
    height, width = ink.any(2).sum(1).float().mean(), ink.any(1).sum(1).float().mean()
    assert height > 1.5 * width


def test_real_kmnist_has_a_test_part_only() -> None:
    source = TorchvisionImages("KMNIST", str(real_data()), shape=GREY)
    assert len(source.split("test")) == 10_000
    with pytest.raises(DataError, match="KMNIST.*holds 0 images"):
        source.split("val")


def test_real_cifar10_pack() -> None:
    source = TorchvisionImages("CIFAR10", str(real_data()), shape=COLOUR)
    assert [len(source.split(split)) for split in SPLIT_NAMES] == [9_000, 1_000, 2_000]
    mean = source.split("train").x.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
