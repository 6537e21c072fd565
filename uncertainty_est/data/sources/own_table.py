"""Tables of one's own: a CSV or Parquet file, or a folder with one for each part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import fit_table
from uncertainty_est.data.sources.table_frames import (
    class_names,
    class_numbers,
    features,
    read_frame,
    read_header,
    read_texts,
)
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import TABLE_SUFFIXES, Part, tables_in

log = logging.getLogger(__name__)

# A column of one of these names, in upper or lower case, holds the classes.
TARGETS = ("label", "target", "class")


@dataclass(eq=False, kw_only=True)
class OwnTable(PartitionedSource):
    """A table with a header line, whose columns are numbers but for that of the classes.

    A single file is cut into training, validation and test rows. In a folder, ``train`` and ``test`` (``.csv`` or
    ``.parquet``) are these parts, ``val`` is the validation split where it exists and is cut from ``train`` where it
    does not; with ``test`` alone it serves as an OOD set. All files have the columns of the first, in any order.

    Classes are numbered in sorted order, numbers by value, names by alphabet. A table without a column of classes has
    the labels -1 and serves as an OOD set.

    Args:
        path: the file or folder.
        target: column of the classes; ``None`` for the one called ``label``, ``target`` or ``class``, if there is one.
        ignore: columns to leave out.
    """

    path: str
    target: str | None = None
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = Path(self.path).stem

    @cached_property
    def files(self) -> dict[Part, Path]:
        """The files by part; a single one is the part ``all``.

        Raises:
            DataError: there are none.
        """
        path = Path(self.path)
        if path.is_dir():
            files = tables_in(path)
            if "test" not in files:
                raise DataError(f"{path}: has no test.csv or test.parquet; add it, or give a single file to cut")
            return files
        if path.suffix not in TABLE_SUFFIXES:
            raise DataError(f"{path}: is no table; give a .csv or .parquet file or a folder with train and test tables")
        return {"all": path}

    @property
    def official_test(self) -> bool:  # type: ignore[override]
        return "all" not in self.files

    @property
    def official_val(self) -> bool:
        return "val" in self.files

    @cached_property
    def columns(self) -> list[str]:  # type: ignore[override]
        """The features, in the order of the first file.

        Raises:
            DataError: it cannot be read, or `target` or `ignore` name no column of it.
        """
        return [column for column in self._header if column != self._target and column not in self.ignore]

    @cached_property
    def classes_by_number(self) -> list[str]:
        """Names of the classes in the first file, in the order of their numbers; empty without a column of classes.

        Raises:
            DataError: a class is missing, or the column holds measurements.
        """
        if self._target is None:
            return []
        return class_names(read_texts(self._first, self._target), self._first)

    def prepare(self) -> None:
        """Read every part, which is kept.

        Raises:
            DataError: a part cannot be used.
        """
        for part in self.files:
            self.load_once(part)
        classes = ", ".join(f"{number} = {name}" for number, name in enumerate(self.classes_by_number[:20]))
        log.info("%s: %d features, classes %s", self.path, len(self.columns), classes or "none")

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        if part not in self.files:
            raise DataError(f"{self.path}: has no {part}.csv or {part}.parquet; add it, or use it as an OOD set only")
        path = self.files[part]
        frame = read_frame(path, [*self.columns, *([self._target] if self._target else [])], text=self._target)
        x = fit_table(features(frame[self.columns], path), self.shape, str(path))
        if self._target is None:
            return x, torch.full((len(x),), -1)
        return x, torch.from_numpy(class_numbers(frame[self._target], self.classes_by_number, path))

    @property
    def _first(self) -> Path:
        return next(iter(self.files.values()))

    @cached_property
    def _header(self) -> list[str]:
        header = read_header(self._first)
        for key, named in (("target", [self.target] if self.target else []), ("ignore", self.ignore)):
            absent = [column for column in named if column not in header]
            if absent:
                raise DataError(f"{self._first}: has no column '{absent[0]}' ({key}); it has {', '.join(header)}")
        return header

    @cached_property
    def _target(self) -> str | None:
        if self.target is not None:
            return self.target
        found = [column for column in self._header if column.lower() in TARGETS and column not in self.ignore]
        if len(found) > 1:
            raise DataError(
                f"{self._first}: the columns {' and '.join(found)} could all be the classes; name one of them by"
                " 'target' and the others by 'ignore'"
            )
        return found[0] if found else None
