"""What a user's own data set is, told by the names of its files alone; nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from uncertainty_est.errors import ConfigError, DataError

TABLE_SUFFIXES = (".csv", ".parquet")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
Part = Literal["train", "val", "test", "all"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
KINDS = "a folder of images, a .npz file, a .csv or .parquet table, or a folder of train, val and test tables"


def kind_of(path: Path) -> str:
    """The data set in ``configs/source/`` that reads what lies at `path`: ``folder``, ``npz`` or ``table``.

    Raises:
        DataError: there is nothing, it is a file of another kind, or a folder with two tables for one part.
    """
    if path.is_dir():
        return "table" if tables_in(path) else "folder"
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; a data set is {KINDS}")
    if path.suffix == ".npz":
        return "npz"
    if path.suffix in TABLE_SUFFIXES:
        return "table"
    raise DataError(f"{path}: cannot be read by its ending '{path.suffix}'; a data set is {KINDS}")


def tables_in(folder: Path) -> dict[Part, Path]:
    """The files ``train``, ``val`` and ``test`` of a folder that are tables, by part; none in a folder of images.

    Raises:
        DataError: a part is there in two formats.
    """
    files: dict[Part, Path] = {}
    for part in PARTS:
        found = [path for suffix in TABLE_SUFFIXES if (path := folder / f"{part}{suffix}").is_file()]
        if len(found) > 1:
            raise DataError(f"{found[0]}: {found[1].name} is there as well; keep one of the two")
        if found:
            files[part] = found[0]
    return files


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, list[str]]]:
    """The folder and every folder below it, each with the names of its files; hidden ones are left out.

    Links are followed, but none into a folder that it lies in. In no order that may be relied on.

    Args:
        folder: where to begin.
        above: real paths of the folders that `folder` was reached through.

    Raises:
        DataError: a folder must not be read.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); make it readable or remove it") from error
    inner = [entry.name for entry in visible if entry.is_dir()]
    yield folder, [entry.name for entry in visible if not entry.is_dir()]
    for name in inner:
        yield from files_below(folder / name, above | {real})


def find_own(data_root: Path, name: str) -> Path | None:
    """The file or folder in `data_root` that is the data set `name`, ``None`` if there is none.

    Raises:
        ConfigError: there are several.
    """
    paths = [data_root / name, *(data_root / f"{name}{suffix}" for suffix in (".npz", *TABLE_SUFFIXES))]
    found = [path for path in paths if (path.is_dir() if path.name == name else path.is_file())]
    if len(found) > 1:
        raise ConfigError(
            f"the data set '{name}' is there more than once: {', '.join(map(str, found))}; rename all but one"
        )
    return found[0] if found else None
