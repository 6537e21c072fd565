"""Image data sets as folders: a folder a class, or none, or lists that name files and labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from uncertainty_est.data.sources.image_files import FileImages, ImageFiles
from uncertainty_est.data.sources.shapes import check_image_shape
from uncertainty_est.data.sources.table_files import TableFile
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import IMAGE_SUFFIXES, PARTS, Part, files_below

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class ImageFolder(FileImages):
    """Images in folders ``<part>/<class>/…``, ``<class>/…`` or without classes, of any size and format.

    Parts are called ``train``, ``val`` and ``test``. With a test part, validation is that of the folder or, without
    one, cut from the training part; a validation part serves as the test part where there is none. A folder without
    such parts, or with a training part only, is cut into three splits. Labels are positions in `class_names`. Where
    images lie in the folder itself there are no classes, and labels are -1. A folder that holds a single folder and
    nothing else stands for that one. Folders below a class's are part of it. Order is by path; hidden files, and files
    that are no images by their names, are passed over.

    Args:
        folders: of the images, relative to `root`; the first that exists is read.
        lists: for a part a text file, relative to `root`, with lines ``<path> <label>`` (labels from 0, or -1). Where
            one of them exists the lists tell what the parts are, and `folders` is not looked at.
        list_folder: what the paths in lists are relative to, itself relative to `root`.
        parts: name of the folder of each part.
        leave_out: files, relative to the folder, that are known to be damaged.
        page: where to get the data set, for messages.
    """

    folders: Sequence[str] = (".",)
    lists: Mapping[str, str] = field(default_factory=dict)
    list_folder: str = "."
    parts: Mapping[str, str] = field(default_factory=lambda: {part: part for part in PARTS})
    leave_out: Sequence[str] = ()
    page: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted({*self.lists, *self.parts} - set(PARTS))
        if unknown:
            raise ValueError(f"parts and lists are of 'train', 'val' and 'test', got '{unknown[0]}'")
        self._listed: dict[Part, tuple[ImageFiles, Tensor]] = {}

    @property
    def official_test(self) -> bool:  # type: ignore[override]
        return "test" in self._places

    @property
    def official_val(self) -> bool:
        return "val" in self._places

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their labels, over all parts; none where a list tells the labels."""
        folders = [path for path in self._places.values() if path.is_dir()]
        return sorted({name for folder in folders if not _images(folder) for name in folders_in(folder)})

    def prepare(self) -> None:
        """Find the folder or the lists; what is in them is seen when a split is asked for."""
        check_image_shape(self.shape, self.name)
        if not self._places:
            raise self._error("no folder of images there")

    def listing(self, part: Part) -> tuple[ImageFiles, Tensor]:
        if part not in self._listed:
            self.prepare()
            if part not in self._places:
                raise self._error(f"no {part} part there (there are: {', '.join(self._places)})")
            files, labels = self.list_part(part, self._places[part])
            if not files:
                raise self._error(f"no images in {self._places[part]}")
            self._listed[part] = files, torch.tensor(labels, dtype=torch.int64)
        return self._listed[part]

    def list_part(self, part: Part, place: Path) -> tuple[ImageFiles, list[int]]:
        """Files and labels of a part, which is a folder or a list.

        Raises:
            DataError: a list that cannot be read.
        """
        if place.is_file():
            pairs = list(_read_list(TableFile(place, self.page or "where it came from")))
            return ImageFiles(Path(self.root) / self.list_folder, [name for name, _ in pairs]), [y for _, y in pairs]
        names = self._left(walk(place))
        label = {name: number for number, name in enumerate(self.class_names)}
        has_classes = not _images(place)
        return ImageFiles(place, names), [label[n.partition("/")[0]] if has_classes else -1 for n in names]

    @cached_property
    def _places(self) -> dict[Part, Path]:
        """What there is of each part: a list, or a folder; ``all`` where there are no parts."""
        root = Path(self.root)
        lists = {part: root / self.lists[part] for part in PARTS if part in self.lists}
        if any(path.is_file() for path in lists.values()):
            return {part: path for part, path in lists.items() if path.is_file()}
        folder = next((root / name for name in self.folders if (root / name).is_dir()), None)
        if folder is None:
            return {}
        names = {part: self.parts[part] for part in PARTS if part in self.parts}
        folder = _inner(folder, names.values())
        parts = {part: _inner(folder / name) for part, name in names.items() if (folder / name).is_dir()}
        if "test" not in parts and "val" in parts:
            parts["test"] = parts.pop("val")
        if "test" in parts:
            return parts
        return {"all": parts.get("train", folder)}

    def _left(self, names: Sequence[str]) -> list[str]:
        kept = sorted(set(names) - set(self.leave_out))
        if len(kept) < len(names):
            log.info("%s: %d files that are known to be damaged are left out", self.name, len(names) - len(kept))
        return kept

    def _error(self, problem: str) -> DataError:
        places = [str(Path(self.root) / name) for name in (*self.folders, *self.lists.values())]
        remedy = f"get the data set from {self.page} and put it" if self.page else "put images"
        return DataError(f"{self.name}: {problem}; {remedy} at " + " or ".join(f"'{place}'" for place in places))


def walk(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, with ``/``; in no order that may be relied on."""
    names = []
    for where, files in files_below(folder):
        base = where.relative_to(folder).as_posix()
        names += [name if base == "." else f"{base}/{name}" for name in files if _is_image(name)]
    return names


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _inner(folder: Path, parts: Collection[str] = ()) -> Path:
    """The folder, or the one that is all there is in it, if it is not a part."""
    while not _images(folder) and len(inner := folders_in(folder)) == 1 and inner[0] not in parts:
        folder = folder / inner[0]
    return folder


def _read_list(file: TableFile) -> Iterator[tuple[str, int]]:
    for line in file.lines():
        name, _, label = line.rpartition(" ")
        if not name or not label.removeprefix("-").isdecimal():
            raise file.error(f"has the line '{line}', which is not '<path> <label>'")
        yield name, int(label)
