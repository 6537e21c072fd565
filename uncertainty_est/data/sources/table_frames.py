"""CSV and Parquet files as data frames, and their columns as features and classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from uncertainty_est.errors import DataError, first_line

_READ_ERRORS = (OSError, ValueError, pd.errors.ParserWarning)
# What a cell without a number looks like.
_MISSING = ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]


def read_header(path: Path) -> list[str]:
    """Names of the columns.

    Raises:
        DataError: the file cannot be read, or its columns have no names, or two have the same.
    """
    if path.suffix == ".parquet":
        header = [column for column in _parquet_columns(path) if not column.startswith("__index_level_")]
    else:
        header = [str(cell).strip() for cell in _csv(path, header=None, nrows=1, dtype=str).iloc[0]]
        if len(header) == 1 and ";" in header[0]:
            raise DataError(f"{path}: its columns are separated by semicolons; write it with commas")
        if any(_is_number(cell) and not cell.isdigit() for cell in header):  # arrays have columns 0, 1, 2, …
            raise DataError(f"{path}: its first line holds numbers; add a header line that names the columns")
    if "" in header:
        raise DataError(
            f"{path}: column {header.index('') + 1} has no name; give it one, or remove it if it only counts the rows"
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: has more than one column '{repeated[0]}'; rename them")
    return header


def read_frame(path: Path, columns: Sequence[str], text: str | None = None) -> pd.DataFrame:
    """Some columns of a file, in the order of `columns`, all of its rows.

    Args:
        path: the file.
        columns: their names.
        text: the one among them that is read as it stands; in the others of a CSV file, numbers are found.

    Raises:
        DataError: the file cannot be read, has no rows or not these columns.
    """
    header = read_header(path)
    absent = [column for column in columns if column not in header]
    if absent:
        raise DataError(f"{path}: has no column '{absent[0]}', which it should have; it has {', '.join(header)}")
    if path.suffix == ".parquet":
        frame = _parquet(path, columns)
    else:
        missing = {column: _MISSING for column in header if column != text}
        # All columns are read: with a choice of them, rows that are too long would pass.
        frame = _csv(path, names=header, header=0, na_values=missing, dtype={text: str} if text else None)
    if not len(frame):
        raise DataError(f"{path}: has no rows below its header; add some")
    return frame[list(columns)]


def read_texts(path: Path, column: str) -> pd.Series:
    """One column of a file as :func:`read_frame` reads its `text`.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        return read_frame(path, [column])[column]
    return _csv(path, names=read_header(path), header=0, usecols=[column], dtype=str)[column]


def features(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """Columns of numbers as ``[N, D]`` float32.

    Raises:
        DataError: a cell is empty or no finite number, with its column and row.
    """
    table = np.empty(frame.shape, np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is found below
        for number, column in enumerate(frame.columns):
            values = frame[column]
            if pd.api.types.is_string_dtype(values) or values.dtype == object:
                values = pd.to_numeric(values, errors="coerce")
            elif not pd.api.types.is_numeric_dtype(values):
                raise _cell(path, column, 0, frame[column].iloc[0])
            table[:, number] = values.to_numpy(np.float64, na_value=np.nan)
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        row, number = wrong[0].tolist()
        column = frame.columns[number]
        raise _cell(path, column, row, frame[column].iloc[row])
    return table


def class_names(labels: pd.Series, path: Path) -> list[str]:
    """The classes in a column, in sorted order: whole numbers by value, else names by alphabet.

    Raises:
        DataError: a cell is empty, or the column holds measurements.
    """
    unique = sorted(set(_texts(labels, path)))
    if not all(_is_number(text) for text in unique):
        return unique
    if any(float(text) % 1 for text in unique):
        raise DataError(
            f"{path}: the column '{labels.name}' holds numbers with fractions, which are no classes; name another"
            " column by 'target'"
        )
    return sorted(unique, key=int)


def class_numbers(labels: pd.Series, names: Sequence[str], path: Path) -> np.ndarray:
    """The place of each cell's class in `names`, ``[N]`` int64.

    Raises:
        DataError: a cell is empty or holds another class.
    """
    texts = _texts(labels, path)
    numbers = pd.Index(names).get_indexer(pd.Index(texts))
    if (numbers < 0).any():
        row = int((numbers < 0).argmax())
        raise DataError(
            f"{path}: row {row + 1} below the header has the class '{texts[row]}' in the column '{labels.name}', which"
            f" no training row has ({', '.join(names[:10])}); correct or remove it"
        )
    return numbers.astype(np.int64)


def _texts(labels: pd.Series, path: Path) -> list[str]:
    """Cells as text, whole numbers in one form (1, not 1.0 or 01)."""
    values, places = np.unique(labels.fillna("").astype(str).str.strip().to_numpy(str), return_inverse=True)
    texts = np.array([_form(value) for value in values.tolist()])[places].tolist()
    if "" in texts:
        raise DataError(
            f"{path}: the column '{labels.name}' has no class in row {texts.index('') + 1} below the header; fill it in"
            " or remove the row"
        )
    return texts


def _form(text: str) -> str:
    """Whole numbers in one form, whatever their size: a float would give neighbours of 17 digits the same."""
    if text.isdecimal():
        return str(int(text))
    return str(int(float(text))) if _is_number(text) and float(text) % 1 == 0 else text


def _cell(path: Path, column: str, row: int, value: object) -> DataError:
    what = "no value" if pd.isna(value) or str(value).strip() in _MISSING else f"'{value}', which is no finite number,"
    return DataError(
        f"{path}: the column '{column}' has {what} in row {row + 1} below the header; correct the row, remove it, or"
        " leave the column out by 'ignore' (or name it by 'target' if it holds the classes)"
    )


def _csv(path: Path, **options: object) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # A row that is longer than the header would be cut with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path, index_col=False, keep_default_na=False, skipinitialspace=True, low_memory=False, **options
            )
    except _READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read as CSV ({first_line(error)}); correct the file") from error


def _parquet_columns(path: Path) -> list[str]:
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: needs pyarrow to be read; install it with: pip install 'uncertainty_est[parquet]'")
    import pyarrow
    import pyarrow.parquet

    try:
        return [str(name) for name in pyarrow.parquet.read_schema(path).names]
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged_parquet(path, error) from error


def _parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=list(columns)).reset_index(drop=True)
    except (OSError, ValueError) as error:  # pyarrow's own for damaged files are among these
        raise _damaged_parquet(path, error) from error


def _damaged_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as Parquet ({first_line(error)}); write it again")


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and bool(np.isfinite(float(text)))  # Python reads 1_0 as 10
    except ValueError:
        return False
