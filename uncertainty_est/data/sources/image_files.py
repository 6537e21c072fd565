"""Images in files of their own: decoded once into an array on disk that is mapped, not read, into memory."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import check_image_shape, covering_size
from uncertainty_est.errors import DataError
from uncertainty_est.files import atomic_path, make_folder
from uncertainty_est.own_data import Part

log = logging.getLogger(__name__)

DECODED_FOLDER = ".decoded"

# What Pillow lets through for a file that is damaged or no image (SyntaxError: a broken PNG chunk).
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# Files that are decoded before what they hold is written: bounds what is in memory at once.
_CHUNK = 64
# Part of every key: another number when the same file would be decoded to other pixels.
_VERSION = 1


@dataclass(frozen=True)
class ImageFiles:
    """N image files.

    Attributes:
        folder: what the names are relative to.
        names: path of each file, with ``/``.
    """

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> ImageFiles:
        """The files at some positions, in that order."""
        return ImageFiles(self.folder, [self.names[row] for row in rows])

    def decode(
        self, shape: Sequence[int], cache: Path, name: str, crop: float = 1.0, key: str = "fixed.data_root"
    ) -> Tensor:
        """All images as uint8 ``[N, C, H, W]``, mapped read-only from a ``.npy`` file in `cache`.

        The file is written the first time, by one process while others wait; its name tells the names, sizes and times
        of the image files, their order, and what is made of them, so that it is never used for anything else.

        Args:
            shape: ``(C, H, W)``; colour becomes grey by luminance, grey becomes colour by repetition.
            cache: folder of the arrays.
            name: of the data set, for messages and file names.
            crop: ``H x W`` is the centre of a picture that, resized with its aspect ratio (bilinear, antialiased),
                just covers ``H / crop x W / crop``; 0.875 for the 224 pixels of 256 that are usual on ImageNet.
            key: what `cache` is to the user, for messages.

        Raises:
            ConfigError: `cache` cannot be written to.
            DataError: a file is missing or damaged, or there is no room for the array.
        """
        check_image_shape(shape, name)
        path = cache / f"{name}-{self._digest(shape, crop)}.npy"
        if not path.is_file():
            make_folder(cache, key)
            with FileLock(cache / f".{path.stem}.lock"):
                if not path.is_file():
                    log.info("%s: %d image files are decoded into %s, once", name, len(self), path)
                    with atomic_path(path) as temporary:
                        self._write(temporary, tuple(shape), crop)
        return _mapped(path)

    def _digest(self, shape: Sequence[int], crop: float) -> str:
        digest = hashlib.sha256(repr((_VERSION, tuple(shape), crop)).encode())
        for name in self.names:
            try:
                stat = (self.folder / name).stat()
            except OSError as error:
                raise _unreadable(self.folder / name, error) from error
            digest.update(f"\n{name}\0{stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()[:32]

    def _write(self, path: Path, shape: tuple[int, ...], crop: float) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), *shape)}
        try:
            # Written, not mapped: a full disk is an exception here and a killed process there.
            with path.open("wb") as stream, ThreadPoolExecutor(os.cpu_count()) as pool:
                np.lib.format.write_array_header_1_0(stream, header)
                for start in range(0, len(self), _CHUNK):
                    files = [self.folder / name for name in self.names[start : start + _CHUNK]]
                    for image in pool.map(lambda file: read_image(file, shape, crop), files):
                        stream.write(image.tobytes())
        except OSError as error:
            raise DataError(
                f"{path.parent}: {len(self)} decoded images of shape {shape} cannot be written ({error.strerror});"
                " free some room or choose another folder"
            ) from error


def read_image(path: Path, shape: Sequence[int], crop: float = 1.0) -> np.ndarray:
    """One image as uint8 ``[C, H, W]``, see :meth:`ImageFiles.decode`.

    Raises:
        DataError: the file is missing, damaged or no image.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            image = _eight_bits(opened).convert("L" if channels == 1 else "RGB")
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    cover = round(height / crop), round(width / crop)
    rows, columns = covering_size((image.height, image.width), cover)
    if (rows, columns) != (image.height, image.width):
        image = image.resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = (rows - height) // 2, (columns - width) // 2
    pixels = np.asarray(image)[top : top + height, left : left + width]
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits without their lower half, which Pillow would clip; all else as it is."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
    return DataError(
        f"{path}: cannot be read as an image ({reason}); put a sound copy there or delete the file and what lists it"
    )


def _mapped(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it, it is made again") from error
    with warnings.catch_warnings():
        # Writable private pages would count as memory that the machine must have, read-only ones do not.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


@dataclass(eq=False, kw_only=True)
class FileImages(PartitionedSource):
    """Images in files of their own, of which only those of the split asked for are decoded.

    A split is decoded once, into ``<cache>/<name>-<digest>.npy``, and mapped from there: later runs decode nothing, and
    memory does not grow with the number of images. The folder can be deleted at any time.

    A subclass says which parts there are (`official_test`, `official_val`) and gives :meth:`listing`.

    Args:
        name: what messages call the set.
        root: folder of the data sets.
        shape: ``(C, H, W)``.
        cache: folder of the decoded arrays; ``None`` for ``<root>/.decoded``.
        crop: see :meth:`ImageFiles.decode`.

    Raises:
        ValueError: a `crop` outside (0, 1].
    """

    name: str
    root: str
    crop: float = 1.0
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must lie in (0, 1], got {self.crop}")

    @abstractmethod
    def listing(self, part: Part) -> tuple[ImageFiles, Tensor]:
        """Files and labels ``[N]`` int64 of a part, -1 without classes; asked for often, so kept by the subclass.

        Raises:
            DataError: they are not there.
        """

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        files, labels = self.listing(part)
        return self.items_of(part, torch.arange(len(files))), labels

    def labels_of(self, part: Part) -> Tensor:
        check_image_shape(self.shape, self.name)
        return self.listing(part)[1]

    def items_of(self, part: Part, rows: Tensor) -> Tensor:
        files = self.listing(part)[0].take(rows.tolist())
        cache = Path(self.root) / DECODED_FOLDER if self.cache is None else Path(self.cache)
        return files.decode(self.shape, cache, self.name, self.crop, f"fixed.sources.{self.name}.cache")
