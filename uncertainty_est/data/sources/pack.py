"""Data sets of one's own: a ``.npz`` file with ``x_train, y_train, x_test, y_test``, and perhaps ``x_val, y_val``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import check_image_shape, fit_images, fit_table, to_nchw
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import PARTS, Part

_READ_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_LAYOUT = "a data set is a .npz file with x_train, y_train, x_test and y_test"
# Files of this ending are written by uncertainty_est.data.embed.
_EMBEDDED_SUFFIX = "_embedded"


@dataclass(eq=False)
class NpzPack(PartitionedSource):
    """The file ``<root>/<name>.npz``: uint8 images ``[N, H, W(, C)]`` or float tables ``[N, D]``.

    The file holds ``x_train, y_train, x_test, y_test``; validation is cut from the training part. Where there is an
    ``x_val`` too, it is the validation split, ``x_train`` the whole training split, and nothing is cut.

    A file without ``x_train`` serves as an OOD set: for testing with ``x_test``, for validation with ``x_val``. There
    ``y_test`` and ``y_val`` may be left out, and labels are then -1; a part whose labels are all -1 has none either.

    Args:
        root: folder of the file.
        name: its name without ``.npz``.
        shape: ``(C, H, W)`` or ``(D,)``.
    """

    root: str
    name: str
    official_test = True
    test_fraction: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = Path(self.root) / f"{self.name}.npz"

    @cached_property
    def official_val(self) -> bool:  # like the parts, looked up once
        return "val" in pack_parts(self.path)

    def prepare(self) -> None:
        pack_parts(self.path)

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        if len(self.shape) == 1:
            x, y = read_arrays(self.path, part)
            if x.ndim != 2 or x.dtype.kind != "f":
                raise DataError(
                    f"{self.path}: x_{part} must be a table (N, D) of float32 to fit the shape {self.shape},"
                    f" got {x.dtype} of shape {x.shape}"
                )
            return fit_table(x, self.shape, f"x_{part} of {self.path}"), y
        check_image_shape(self.shape, self.name)
        images, y = read_images(self.path, part)
        return fit_images(images, self.shape, self.name), y


@dataclass(eq=False, kw_only=True)
class NpzFile(NpzPack):
    """Like :class:`NpzPack`, of a file anywhere.

    Args:
        file: its path.
    """

    root: str = field(init=False)
    name: str = field(init=False)
    file: str

    def __post_init__(self) -> None:
        file = Path(self.file)
        self.root, self.name = str(file.parent), file.stem
        super().__post_init__()

    def prepare(self) -> None:
        if self.path != Path(self.file):
            raise DataError(f"{self.file}: is no .npz file by its name; {_LAYOUT}")
        super().prepare()


def pack_parts(path: Path) -> list[Part]:
    """Which of ``"train"``, ``"val"`` and ``"test"`` a file holds, read from its directory only.

    Raises:
        DataError: no such file, no ``.npz`` file, or it holds neither a training nor a test part.
    """
    with _open(path) as pack:
        parts = [part for part in PARTS if f"x_{part}" in pack.files]
    if not {"train", "test"} & set(parts):
        raise DataError(f"{path}: holds neither x_train nor x_test; {_LAYOUT}")
    return parts


def read_images(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` uint8 and labels ``[N]`` int64 of one part.

    Raises:
        DataError: a key is missing or what it holds is something else.
    """
    x, y = read_arrays(path, part)
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))):
        raise DataError(
            f"{path}: x_{part} must hold uint8 images (N, H, W) or (N, H, W, 1 or 3), got {x.dtype} of shape {x.shape}"
        )
    return to_nchw(x), y


def read_arrays(path: Path, part: str) -> tuple[np.ndarray, Tensor]:
    """The array ``x_<part>`` as it is and its labels ``[N]`` int64.

    Raises:
        DataError: a key is missing, the file is damaged, or labels are neither N integers from 0 nor all -1.
    """
    with _open(path) as pack:
        x = _read(pack, path, f"x_{part}")
        if part != "train" and f"y_{part}" not in pack.files:
            return x, torch.full((len(x),), -1)
        y = _read(pack, path, f"y_{part}")
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"{path}: y_{part} must hold integers of shape (N,), got {y.dtype} of shape {y.shape}")
    if len(y) != len(x):
        raise DataError(f"{path}: y_{part} has {len(y)} labels for the {len(x)} rows of x_{part}")
    if not len(y):
        raise DataError(f"{path}: x_{part} has no rows; leave the key out or fill it")
    if y.min() < 0 and not (y == -1).all():
        raise DataError(
            f"{path}: y_{part} has the label {y.min()}; labels must be 0, 1, 2, ..., or all of them -1 (no labels)"
        )
    return x, torch.from_numpy(y.astype(np.int64))


@contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        stream = path.open("rb")
    except OSError as error:
        remedy = f"{_LAYOUT}, put it there"
        if path.stem.endswith(_EMBEDDED_SUFFIX):
            remedy = "write it with python -m uncertainty_est.data.embed and set fixed.data_root to its folder"
        raise DataError(f"{path}: cannot be opened ({error.strerror}); {remedy}") from error
    with stream:  # our own: NumPy leaves the files that it opens and cannot read open
        try:
            pack = np.load(stream, allow_pickle=False)
        except _READ_ERRORS as error:
            raise DataError(f"{path}: is damaged or no .npz file ({error}); write it again") from error
        if not isinstance(pack, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: holds a single array; {_LAYOUT}")
        with pack:
            yield pack


def _read(pack: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray:
    if key not in pack.files:
        raise DataError(f"{path}: has no '{key}' (it holds {', '.join(pack.files) or 'nothing'}); {_LAYOUT}")
    try:
        array = pack[key]
    except _READ_ERRORS as error:
        raise DataError(f"{path}: '{key}' cannot be read ({error}); write the file again") from error
    if not array.ndim:
        raise DataError(f"{path}: '{key}' holds a single number, not an array of items")
    return array
