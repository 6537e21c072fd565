"""Tables in text files: the published layouts, and one sentence about what is wrong with a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uncertainty_est.errors import DataError

# A file in PostNet's layout ends with as many rows that have a number in their second column and nothing after it.
_METADATA_ROWS = 3


@dataclass(frozen=True)
class TableFile:
    """One file of a published table.

    Attributes:
        path: of the file.
        page: where to get it, for messages.
    """

    path: Path
    page: str

    def error(self, problem: str) -> DataError:
        """The exception that says what is wrong and where a sound file is to be had."""
        return DataError(f"{self.path}: {problem}; get the file again from {self.page}")

    def lines(self) -> list[str]:
        """The lines that are not blank, without the blanks around them.

        Raises:
            DataError: no such file, or no text.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise self.error(f"cannot be opened ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self.error("is damaged (it is no text)") from error
        return [stripped for line in text.splitlines() if (stripped := line.strip())]

    def numbers(self, lines: Sequence[str], columns: int, delimiter: str | None = ",") -> np.ndarray:
        """Lines of `columns` numbers each as ``[N, columns]`` float64.

        Args:
            lines: at least one.
            columns: how many numbers a line must have.
            delimiter: what separates them; ``None`` for blanks.

        Raises:
            DataError: no lines, another number of columns, or something that is no number.
        """
        if not lines:
            raise self.error("is damaged (it has no rows)")
        try:
            table = np.loadtxt(lines, delimiter=delimiter, comments=None, ndmin=2)
        except ValueError as error:
            raise self.error(f"is damaged ({str(error).split(';')[0].rstrip('.')})") from error
        if table.shape[1] != columns:
            raise self.error(f"has rows of {table.shape[1]} numbers where {columns} are expected")
        return table

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Labels ``[N]`` int64 from the numbers of a column.

        Raises:
            DataError: one of them is not 0, 1, 2, ...
        """
        wrong = ~((values >= 0) & (values == np.rint(values)) & np.isfinite(values))
        if wrong.any():
            row = int(wrong.argmax())
            raise self.error(f"has the label {values[row]:g} in its row {row}, where labels are 0, 1, 2, ...")
        return values.astype(np.int64)

    def named_labels(self, names: Sequence[str], numbers: Mapping[str, int]) -> np.ndarray:
        """Labels ``[N]`` int64 from names of classes, in upper or lower case.

        Raises:
            DataError: a name that `numbers` does not have.
        """
        folded = [name.strip().lower() for name in names]
        unknown = sorted(set(folded) - set(numbers))
        if unknown:
            raise self.error(f"has rows of the unknown class '{unknown[0]}' (known are {', '.join(numbers)})")
        return np.array([numbers[name] for name in folded], dtype=np.int64)


def read_postnet_csv(file: TableFile, features: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A CSV file in PostNet's layout: features ``[N, D]`` float64 and labels ``[N]`` int64.

    A header, then rows of an index, D features and the label. The last three rows may tell the number of rows, of
    features and of classes; then the first two are compared with what is there.

    Args:
        file: the file.
        features: D, if it is known; else what the header says.

    Raises:
        DataError: the file is missing or damaged, or has another number of columns.
    """
    header, *body = file.lines() or [""]
    columns = header.count(",") + 1 if features is None else features + 2
    if columns < 3:
        raise file.error("is damaged (its header does not name an index, features and a label)")
    stop = len(body)
    while stop and not "".join(body[stop - 1].split(",")[2:]).strip():
        stop -= 1
    metadata = body[stop:]
    if len(metadata) not in (0, _METADATA_ROWS):
        raise file.error(f"is damaged (rows without a label at its end: {len(metadata)}, where 3 or none belong)")
    table = file.numbers(body[:stop], columns)
    if metadata:
        said = file.numbers([",".join(line.split(",")[1:2]) for line in metadata], 1)[:2, 0].tolist()
        if said != [len(table), columns - 2]:
            raise file.error(
                f"is damaged (it has {len(table)} rows of {columns - 2} features and says {said[0]:g} of {said[1]:g})"
            )
    return table[:, 1:-1], file.labels(table[:, -1])


def read_uci_classes(file: TableFile, features: int, classes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a class name and `features` numbers below any number of header lines: ``[N, D]`` and labels ``[N]``.

    Raises:
        DataError: the file is missing or damaged, or names a class that is not in `classes`.
    """
    lines = file.lines()
    pairs = [line.partition(",") for line in lines]
    # The header's own lines have commas as well: the rows begin where the first class name is.
    start = next((n for n, pair in enumerate(pairs) if pair[0].strip().lower() in classes), len(lines))
    rows = pairs[start:]
    return file.numbers([row[2] for row in rows], features), file.named_labels([row[0] for row in rows], classes)


def read_arff_classes(file: TableFile, features: int, classes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """A Weka file whose last attribute is the class: ``[N, D]`` and labels ``[N]``.

    Raises:
        DataError: the file is missing or damaged, or names a class that is not in `classes`.
    """
    lines = [line for line in file.lines() if not line.startswith("%")]
    start = next((n + 1 for n, line in enumerate(lines) if line.lower() == "@data"), len(lines))
    rows = [line.rpartition(",") for line in lines[start:]]
    return file.numbers([row[0] for row in rows], features), file.named_labels([row[2] for row in rows], classes)
