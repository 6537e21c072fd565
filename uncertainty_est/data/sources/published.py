"""Published image data sets, downloaded and read by torchvision."""

from __future__ import annotations

import http.client
import logging
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from filelock import FileLock
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.image_files import DECODED_FOLDER, ImageFiles
from uncertainty_est.data.sources.image_folder import walk
from uncertainty_est.data.sources.pack import pack_parts, read_images
from uncertainty_est.data.sources.shapes import check_image_shape, fit_images, to_nchw
from uncertainty_est.errors import DataError, first_line
from uncertainty_est.own_data import Part

log = logging.getLogger(__name__)

# What torchvision lets through when a download fails or a file is damaged.
_READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    http.client.HTTPException,
)

# An idx file of images without any image is its header alone.
_HEADER_BYTES = 16


@dataclass(frozen=True)
class _Published:
    """Where a published data set comes from and what torchvision needs to be told to read it.

    Attributes:
        page: the official page.
        parts: for each part the arguments of the torchvision class, one mapping for each of its subsets.
        files: for each part what must exist below the root folder.
        pack: name of a ``.npz`` file that is used instead where it exists.
        first_label: label of the first class in the files.
        transposed: rows and columns are swapped in the files.
        inverted: the files show dark strokes on a light ground, and others of their kind light ones on a dark ground.
        list_files: of a set of image files, those of a part in the root folder, in folders that are the classes.
    """

    page: str
    parts: Mapping[str, Sequence[Mapping[str, Any]]]
    files: Mapping[str, Sequence[str]]
    pack: str
    first_label: int = 0
    transposed: bool = False
    inverted: bool = False
    list_files: Callable[[Path, str], ImageFiles] | None = None


_TRAIN_FLAG = {"train": [{"train": True}], "test": [{"train": False}]}


def _idx_files(folder: str, prefix: str = "", test: str = "t10k") -> dict[str, list[str]]:
    return {
        part: [f"{folder}/raw/{prefix}{stem}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        for part, stem in (("train", "train"), ("test", test))
    }


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock inside, unless its folder cannot be written to: then nobody downloads anything into it either."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        log.debug("no lock %s (%s)", path, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _textures(root: Path, part: str) -> ImageFiles:
    labels = root / "dtd" / "dtd" / "labels"
    lists = ("train1.txt", "val1.txt") if part == "train" else ("test1.txt",)
    names = [name for file in lists for name in (labels / file).read_text().split()]
    return ImageFiles(root / "dtd" / "dtd" / "images", names)


def _omniglot(root: Path, part: str) -> ImageFiles:
    folder = root / "omniglot-py" / ("images_background" if part == "train" else "images_evaluation")
    return ImageFiles(folder, sorted(walk(folder)))


_PUBLISHED = {
    "MNIST": _Published("http://yann.lecun.com/exdb/mnist/", _TRAIN_FLAG, _idx_files("MNIST"), "mnist"),
    "FashionMNIST": _Published(
        "https://github.com/zalandoresearch/fashion-mnist",
        _TRAIN_FLAG,
        _idx_files("FashionMNIST"),
        "fashionmnist",
    ),
    "KMNIST": _Published("https://github.com/rois-codh/kmnist", _TRAIN_FLAG, _idx_files("KMNIST"), "kmnist"),
    "EMNIST": _Published(
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        {part: [{"split": "letters", "train": part == "train"}] for part in ("train", "test")},
        _idx_files("EMNIST", prefix="emnist-letters-", test="test"),
        "emnist_letters",
        first_label=1,
        transposed=True,
    ),
    "CIFAR10": _Published(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        _TRAIN_FLAG,
        {part: ["cifar-10-batches-py"] for part in ("train", "test")},
        "cifar10",
    ),
    "CIFAR100": _Published(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        _TRAIN_FLAG,
        {part: ["cifar-100-python"] for part in ("train", "test")},
        "cifar100",
    ),
    "SVHN": _Published(
        "http://ufldl.stanford.edu/housenumbers/",
        {part: [{"split": part}] for part in ("train", "test")},
        {part: [f"{part}_32x32.mat"] for part in ("train", "test")},
        "svhn",
    ),
    "DTD": _Published(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        {"train": [{"split": "train"}, {"split": "val"}], "test": [{"split": "test"}]},
        {part: ["dtd/dtd/images", "dtd/dtd/labels"] for part in ("train", "test")},
        "textures",
        list_files=_textures,
    ),
    "USPS": _Published(
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        _TRAIN_FLAG,
        {"train": ["usps.bz2"], "test": ["usps.t.bz2"]},
        "usps",
    ),
    "Omniglot": _Published(
        "https://github.com/brendenlake/omniglot",
        {part: [{"background": part == "train"}] for part in ("train", "test")},
        {"train": ["omniglot-py/images_background"], "test": ["omniglot-py/images_evaluation"]},
        "omniglot",
        inverted=True,
        list_files=_omniglot,
    ),
}


@dataclass(eq=False)
class TorchvisionImages(PartitionedSource):
    """A published image data set, downloaded into `root` on first use.

    A file ``<root>/<name>.npz`` with ``x_train, y_train, x_test, y_test`` is used instead where it exists.
    EMNIST is its "letters" subset turned upright, with labels 0 to 25; DTD is its first partition, whose
    training and validation subsets make the training part. Omniglot has light strokes here, as MNIST; its training
    part is the background set, its test part the evaluation set, whose characters are others. DTD and Omniglot are
    image files, which are decoded once, see :class:`ImageFiles`.

    Args:
        dataset: the torchvision class: MNIST, FashionMNIST, KMNIST, EMNIST, USPS, Omniglot, CIFAR10, CIFAR100, SVHN or
            DTD.
        root: folder of the files, in torchvision's layout.
        shape: ``(C, H, W)``.

    Raises:
        ValueError: an unknown `dataset`.
    """

    dataset: str
    root: str
    official_test = True
    test_fraction: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.dataset not in _PUBLISHED:
            raise ValueError(f"dataset must be one of {', '.join(_PUBLISHED)}, got '{self.dataset}'")
        self.name = self.dataset
        super().__post_init__()
        self._published = _PUBLISHED[self.dataset]
        self._folder = Path(self.root)
        self._pack = self._folder / f"{self._published.pack}.npz"
        self._listed: dict[str, ImageFiles] = {}

    def prepare(self) -> None:
        """Download the data set, unless the files of a part are there already.

        Raises:
            DataError: they are not, and cannot be downloaded.
        """
        check_image_shape(self.shape, self.name)
        if self._pack.is_file():
            pack_parts(self._pack)
        elif not any(self._has(part) for part in self._published.parts):
            for part in self._published.parts:
                self._open(part)

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        check_image_shape(self.shape, self.name)
        if self._pack.is_file():
            log.info("%s: the %s part is read from %s", self.name, part, self._pack)
            x, y = read_images(self._pack, part)
            return fit_images(x, self.shape, self.name), y
        if self._is_in_files:
            y = self.labels_of(part)
            return self.items_of(part, torch.arange(len(y))), y
        pieces = [self._read(subset, part) for subset in self._open(part)]
        x, y = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        if self._published.transposed:
            x = x.transpose(2, 3).contiguous()
        return x, y - self._published.first_label

    def labels_of(self, part: Part) -> Tensor:
        if not self._is_in_files:
            return super().labels_of(part)
        check_image_shape(self.shape, self.name)
        folders = [name.rpartition("/")[0] for name in self._files(part).names]
        return torch.from_numpy(np.unique(folders, return_inverse=True)[1].astype(np.int64))

    def items_of(self, part: Part, rows: Tensor) -> Tensor:
        if not self._is_in_files:
            return super().items_of(part, rows)
        files = self._files(part).take(rows.tolist())
        x = files.decode(self.shape, self._folder / DECODED_FOLDER, self.name)
        return 255 - x if self._published.inverted else x

    @property
    def _is_in_files(self) -> bool:
        return self._published.list_files is not None and not self._pack.is_file()

    def _files(self, part: str) -> ImageFiles:
        """The files of a part, downloaded if need be."""
        assert self._published.list_files is not None
        if part not in self._listed:
            self._open(part)
            self._listed[part] = self._published.list_files(self._folder, part)
        return self._listed[part]

    def _has(self, part: str) -> bool:
        return all((self._folder / file).exists() for file in self._published.files[part])

    def _open(self, part: str) -> list[Any]:
        """The torchvision data sets of a part, downloaded if need be, by one process while others wait."""
        dataset_class = getattr(torchvision.datasets, self.name)
        try:
            with nullcontext() if self._has(part) else _alone(self._folder / f".{self.name}.lock"):
                self._check_not_empty(part)
                return [
                    dataset_class(self._folder, **arguments, download=True) for arguments in self._published.parts[part]
                ]
        except _READ_ERRORS as error:
            raise self._unreadable(part, error) from error

    def _check_not_empty(self, part: str) -> None:
        paths = [self._folder / file for file in self._published.files[part]]
        empty = [path for path in paths if path.is_file() and path.stat().st_size <= _HEADER_BYTES]
        if empty:
            raise DataError(
                f"{self.name}: {empty[0]} holds 0 images, so there is no split from its {part} part"
                f" (validation images come from the training part); get the complete file from"
                f" {self._published.page}"
            )

    def _read(self, subset: Any, part: str) -> tuple[Tensor, Tensor]:
        """Images ``[N, *shape]`` uint8 and labels ``[N]`` int64 of one torchvision data set."""
        labels = subset.labels if isinstance(subset, torchvision.datasets.SVHN) else subset.targets
        x = fit_images(to_nchw(subset.data), self.shape, self.name)
        return x, torch.as_tensor(labels, dtype=torch.int64)

    def _unreadable(self, part: str, error: BaseException) -> DataError:
        where = self._folder / self._published.files[part][0]
        return DataError(
            f"{self.name}: its {part} part can neither be read below '{self._folder}' nor downloaded"
            f" ({first_line(error)}); get it from {self._published.page} and put it where {where} is expected"
        )
