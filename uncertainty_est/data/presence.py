"""Whether the files of a data set are there, as its card describes them; without a network, nothing is unpacked."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uncertainty_est.data.card import Card, CardFile, Layout
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import IMAGE_SUFFIXES, files_below

# In the order in which they say more of what is wrong.
STATES = ("present", "missing", "incomplete", "damaged")

# What counts as an item of a folder.
_ITEM_SUFFIXES = IMAGE_SUFFIXES | {".npy"}


@dataclass(frozen=True)
class Presence:
    """What there is of a data set.

    Attributes:
        name: of the data set.
        state: one of :data:`STATES`.
        found: how much there is.
        problems: a sentence for each file that is not as it should be.
    """

    name: str
    state: str
    found: str
    problems: Sequence[str] = ()


def look(card: Card, data_root: Path, md5: bool = False) -> Presence:
    """Look for a data set below a folder.

    Args:
        card: of the data set.
        data_root: the folder.
        md5: compare checksums too, where they are published.
    """
    pack = data_root / f"{card.name}.npz"
    if card.obtained == "torchvision" and pack.is_file():  # which is read in place of the published files
        return _look_at(card, Layout(files=[CardFile(path=pack.name)]), data_root, md5)
    if not card.layouts:
        return Presence(card.name, "present", "nothing to get")
    looks = [_look_at(card, layout, data_root, md5) for layout in card.layouts]
    # The layout that is there; else the one that somebody began with; else the first.
    return min(looks, key=lambda look: ("present", "damaged", "incomplete", "missing").index(look.state))


def _look_at(card: Card, layout: Layout, data_root: Path, md5: bool) -> Presence:
    needed = [file for file in layout.files if file.needed]
    archives = [file for file in layout.files if not file.needed and (data_root / file.path).exists()]
    states, problems, items, compared = [], [], 0, 0
    for file in [*needed, *archives]:
        state, problem, count = _state(file, data_root / file.path, md5)
        states.append(state)
        items += count
        compared += md5 and file.md5 is not None and state == "present"
        problems += [problem] if problem else []
    there = sum(state == "present" for state in states[: len(needed)])
    found = f"{items:,} items" if items else f"{there} of {len(needed)} files" if there else "nothing"
    if "damaged" in states:
        state = "damaged"
    elif there == len(needed):
        state = "present"
    else:
        state = "incomplete" if there or "incomplete" in states else "missing"
    if archives and state != "present":
        problems.append(f"{data_root / archives[0].path}: is there and not unpacked, or not whole")
    return Presence(card.name, state, found + f", {compared} checksums agree" * bool(compared), problems)


def _state(file: CardFile, path: Path, md5: bool) -> tuple[str, str, int]:
    """State, what is wrong, and number of items of a file or folder."""
    if not path.exists():
        return "missing", f"{path}: is not there", 0
    if path.is_dir():
        try:
            count = _count(path) if file.items else 0
        except DataError as error:
            return "damaged", str(error), 0
        if file.items and count < file.items:
            return "incomplete", f"{path}: holds {count:,} of {file.items:,} items", count
        return "present", "", count
    size = path.stat().st_size
    if not size or (file.bytes is not None and size != file.bytes):
        right = f" of {file.bytes:,}" if file.bytes else ""
        return "damaged", f"{path}: has {size:,}{right} bytes; remove it and get it again", 0
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        return "damaged", f"{path}: is no .npz file, or its end is missing; write it again", 0
    if md5 and file.md5 and (found := _md5(path)) != file.md5:
        return "damaged", f"{path}: has the MD5 {found}, published is {file.md5}; remove it and get it again", 0
    return "present", "", 0


def _count(folder: Path) -> int:
    """Images and arrays below a folder, hidden ones left out."""
    names = (name for _, files in files_below(folder) for name in files)
    return sum(Path(name).suffix.lower() in _ITEM_SUFFIXES for name in names)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
