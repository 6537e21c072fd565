"""The tables that Posterior Network and its successors are judged on, read from the files that are published.

References:
    B. Charpentier, D. Zügner, S. Günnemann, Posterior Network (NeurIPS 2020), arXiv:2006.09239.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource, Split, SplitName
from uncertainty_est.data.sources.shapes import fit_table
from uncertainty_est.data.sources.table_files import (
    TableFile,
    read_arff_classes,
    read_postnet_csv,
    read_uci_classes,
)
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import Part

log = logging.getLogger(__name__)

_POSTNET_PAGE = "https://github.com/sharpenb/Posterior-Network (folder data)"


@dataclass(eq=False)
class PostNetCsv(PartitionedSource):
    """One CSV file in PostNet's layout: an index, D features and the label in every row.

    Args:
        root: folder of all data sets.
        file: the file, below `root`.
        shape: ``(D,)``.
    """

    root: str
    file: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = Path(self.file).stem

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        x, y = read_postnet_csv(TableFile(Path(self.root) / self.file, _POSTNET_PAGE))
        return fit_table(x, self.shape, self.name), torch.from_numpy(y)


SEGMENT_CLASSES = ("brickface", "foliage", "cement", "window", "path", "grass", "sky")
_SEGMENT_NUMBERS = {name: number for number, name in enumerate(SEGMENT_CLASSES)}
_SEGMENT_ROWS = 330 * len(SEGMENT_CLASSES)
_SEGMENT_FEATURES = 18
_PIXEL_COUNT = 2  # of UCI's 19 features the one that is 9 in every row
# In the order in which they are looked for.
_SEGMENT_FILES = {
    "csv": ("segment_scale_sky_missing.csv", "segment_scale_sky_only.csv"),
    "uci": ("segmentation.data", "segmentation.test"),
    "arff": ("segment-challenge.arff", "segment-test.arff"),
}
_SEGMENT_PAGES = {
    "csv": _POSTNET_PAGE,
    "uci": "https://archive.ics.uci.edu/dataset/50/image+segmentation",
    "arff": "https://waikato.github.io/weka-wiki/downloading_weka/ (folder data)",
}


@dataclass(eq=False)
class Segment(PartitionedSource):
    """UCI's Image Segmentation: 2,310 patches of outdoor photographs, 18 features, 330 patches of each class.

    The labels are 0 brickface, 1 foliage, 2 cement, 3 window, 4 path, 5 grass, 6 sky, in every layout; PostNet's
    in-distribution set is ``classes=[0, 1, 2, 3, 4, 5]``, and sky is its OOD set.

    ========  ==========================================  =====================================================
    layout    files in ``<root>/segment``                 units
    ========  ==========================================  =====================================================
    ``csv``   ``segment_scale_sky_missing.csv`` and       scaled by minimum and maximum of all rows of classes
              ``segment_scale_sky_only.csv``              0 to 5, so the scale has seen the test rows
    ``uci``   ``segmentation.data``,                      original
              ``segmentation.test``
    ``arff``  ``segment-challenge.arff``,                 original, six significant digits
              ``segment-test.arff``
    ========  ==========================================  =====================================================

    The layouts hold the same rows, each in an order of its own, so one `split_seed` cuts them differently.
    ``indices`` count through the rows of the CSV files, then UCI's, then Weka's, which lets the splits of a run be
    told from those of another layout.

    Args:
        root: folder of all data sets.
        layout: ``"auto"`` for the first of the three whose two files are both there, or the name of one.
        shape: ``(18,)``.

    Raises:
        ValueError: an unknown `layout`.

    References:
        C. Brodley, Image Segmentation (UCI Machine Learning Repository, 1990).
    """

    root: str
    layout: str = field(default="auto", kw_only=True)
    name = "segment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in ("auto", *_SEGMENT_FILES):
            raise ValueError(f"layout must be 'auto', 'csv', 'uci' or 'arff', got '{self.layout}'")
        self._folder = Path(self.root) / "segment"
        self._found = ""

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        self._found = layout = self._find()
        log.info("%s: the '%s' layout is read from %s", self.name, layout, self._folder)
        pieces = [self._read(layout, TableFile(self._folder / f, _SEGMENT_PAGES[layout])) for f in _files(layout)]
        x, y = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        counts = np.bincount(y, minlength=len(SEGMENT_CLASSES))
        if len(counts) > len(SEGMENT_CLASSES) or counts.min() != counts.max():
            raise DataError(
                f"{self._folder}: {' and '.join(_files(layout))} hold {counts.tolist()} rows of the classes 0, 1, ...,"
                f" where all of the seven have 330; get both again from {_SEGMENT_PAGES[layout]}"
            )
        return fit_table(x, self.shape, self.name), torch.from_numpy(y)

    def split(self, name: SplitName) -> Split:
        split = super().split(name)
        return replace(split, indices=split.indices + _SEGMENT_ROWS * list(_SEGMENT_FILES).index(self._found))

    def _find(self) -> str:
        """The layout whose files are there.

        Both must be: a set and its OOD set from different layouts would differ by their units alone.

        Raises:
            DataError: there is none.
        """
        wanted = list(_SEGMENT_FILES) if self.layout == "auto" else [self.layout]
        for layout in wanted:
            if all((self._folder / file).is_file() for file in _files(layout)):
                return layout
        raise DataError(
            f"{self.name}: {self._folder} does not hold "
            + ", nor ".join(f"{' and '.join(_files(layout))} ({_SEGMENT_PAGES[layout]})" for layout in wanted)
            + "; get both files of one place and put them there"
        )

    def _read(self, layout: str, file: TableFile) -> tuple[np.ndarray, np.ndarray]:
        if layout == "csv":
            return read_postnet_csv(file, _SEGMENT_FEATURES)
        read = read_uci_classes if layout == "uci" else read_arff_classes
        x, y = read(file, _SEGMENT_FEATURES + 1, _SEGMENT_NUMBERS)
        return np.delete(x, _PIXEL_COUNT, axis=1), y


def _files(layout: str) -> tuple[str, str]:
    return _SEGMENT_FILES[layout]


_SENSORLESS_PAGE = "https://archive.ics.uci.edu/dataset/325/dataset+for+sensorless+drive+diagnosis"
_SENSORLESS_FILES = ("Sensorless_drive_diagnosis.txt", "Sensorless_drive_diagnosis.subset.txt")
_SENSORLESS_CLASSES = 11
_SENSORLESS_FEATURES = 48


@dataclass(eq=False)
class SensorlessDrive(PartitionedSource):
    """UCI's Sensorless Drive Diagnosis: 48 features of a motor's currents, 11 states of the motor, original units.

    The file's classes 1 to 11 are the labels 0 to 10. PostNet's in-distribution set is the first nine, and the last
    two are its OOD set. The published file has 58,509 rows, 5,319 of each class. Where it is absent,
    ``Sensorless_drive_diagnosis.subset.txt`` is read, which is laid out alike.

    ``indices`` are positions among the rows that `max_per_class` keeps.

    Args:
        root: folder of all data sets; the file is in ``<root>/sensorless``.
        max_per_class: keep the first so many rows of each class; ``"smallest"`` keeps as many of each as the class
            with the fewest has, in the published file all of them; ``None`` keeps every row.
        shape: ``(48,)``.

    Raises:
        ValueError: `max_per_class` is neither of these.

    References:
        M. Bator, Dataset for Sensorless Drive Diagnosis (UCI Machine Learning Repository, 2013).
    """

    root: str
    max_per_class: int | str | None = field(default=None, kw_only=True)
    name = "sensorless"

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.max_per_class
        if not (limit is None or limit == "smallest" or (isinstance(limit, int) and limit >= 1)):
            raise ValueError(f"max_per_class must be null, 'smallest' or at least 1, got {limit!r}")

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        file = self._find()
        table = file.numbers(file.lines(), _SENSORLESS_FEATURES + 1, delimiter=None)
        state = file.labels(table[:, -1])
        classes = np.unique(state).tolist()
        if classes != list(range(1, _SENSORLESS_CLASSES + 1)):
            raise file.error(f"is damaged (its last column has the classes {classes}, not 1 to {_SENSORLESS_CLASSES})")
        y = state - 1
        kept = np.arange(len(y))
        if self.max_per_class is not None:
            smallest = self.max_per_class == "smallest"
            kept = first_of_each_class(y, int(np.bincount(y).min() if smallest else self.max_per_class))
        if file.path.name != _SENSORLESS_FILES[0]:
            log.info("%s: the subset %s of %d rows is used, %d of them", self.name, file.path, len(y), len(kept))
        return fit_table(table[kept, :-1], self.shape, self.name), torch.from_numpy(y[kept])

    def _find(self) -> TableFile:
        folder = Path(self.root) / "sensorless"
        for name in _SENSORLESS_FILES:
            if (folder / name).is_file():
                return TableFile(folder / name, _SENSORLESS_PAGE)
        raise DataError(
            f"{self.name}: {folder} holds neither {' nor '.join(_SENSORLESS_FILES)};"
            f" get the first from {_SENSORLESS_PAGE} and put it there"
        )


def first_of_each_class(y: np.ndarray, most: int) -> np.ndarray:
    """Positions in `y`, in ascending order, of the first `most` items of every class.

    Args:
        y: ``[N]`` labels from 0.
        most: of each class; a class with fewer is kept whole.
    """
    counts = np.bincount(y)
    number_in_class = np.empty(len(y), dtype=np.int64)
    number_in_class[np.argsort(y, kind="stable")] = np.arange(len(y)) - np.repeat(counts.cumsum() - counts, counts)
    return np.flatnonzero(number_in_class < most)
