"""Files that are either whole or absent: every writer goes through a temporary file in the same folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uncertainty_est.errors import ConfigError

if TYPE_CHECKING:  # commands that write no table need not wait for pandas
    import pandas as pd


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and is removed on failure."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then move the result to `path`."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN is refused, since other readers refuse it too."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically."""
    write_atomically(path, lambda p: p.write_text(text))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write the rows of `table` without their index, atomically."""
    write_atomically(path, lambda p: table.to_csv(p, index=False))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a compressed ``.npz``, atomically."""
    # numpy's annotations take the names of arrays for its own option allow_pickle.
    write_atomically(path, lambda p: np.savez_compressed(p, **dict(arrays)))  # type: ignore[arg-type]


def make_folder(path: Path, key: str) -> Path:
    """Create a folder that can be written to.

    Args:
        path: the folder.
        key: the option or configuration key that named it, for the message.

    Raises:
        ConfigError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: cannot write to '{path}' ({error.strerror}); choose another folder") from error
    return path


def make_new_folder(parent: Path, name: str) -> Path:
    """Create ``parent/name``, or ``parent/name-2``, ``-3``, … so that nothing that exists is ever written over."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
