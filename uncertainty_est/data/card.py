"""What is known of every data set: a YAML file each in ``cards/``, read and checked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from uncertainty_est.errors import DataError, did_you_mean, first_line

FOLDER = Path(__file__).resolve().parent / "cards"

T = TypeVar("T")

OBTAINED = {
    "bundled": "with scikit-learn",
    "generated": "generated",
    "torchvision": "downloaded by torchvision on first use",
    "by hand": "by hand",
    "own": "your own",
}
"""How a data set gets here, and in words."""

PARTS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True)
class CardFile:
    """A file, or a folder of items.

    Attributes:
        path: below the data root.
        needed: ``False`` for an archive that may be removed when it is unpacked.
        bytes: size of the published file.
        md5: of the published file.
        items: number of images or arrays below a folder.
    """

    path: str
    needed: bool = True
    bytes: int | None = None
    md5: str | None = None
    items: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files that together are the data set.

    Attributes:
        files: of the layout.
        title: what tells it from others.
    """

    files: Sequence[CardFile]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a data set; what is not known is left out.

    Attributes:
        name: of the file in ``configs/source/``.
        title: in full.
        about: what it is, a sentence or two.
        obtained: a key of :data:`OBTAINED`.
        items: number of items of each published part, or of ``all``; of a generated set with the defaults.
        shape: of an original, ``[C, H, W]`` or ``[D]``; in words where originals differ.
        classes: number of classes, 0 where there are none.
        how: what to do to get it, where a page and file names do not say it.
        licence: as its publisher states it.
        homepage: where it is published.
        paper: that introduced it.
        layouts: the files in the forms they may have; one is enough.
        notes: what a user should know before trusting a number.
    """

    name: str
    title: str
    about: str
    obtained: str
    items: Mapping[str, int]
    shape: Sequence[int] | str
    classes: int
    how: str = ""
    licence: str = ""
    homepage: str = ""
    paper: str = ""
    layouts: Sequence[Layout] = ()
    notes: Sequence[str] = ()

    @property
    def total(self) -> int:
        """Number of items in all parts, 0 where it is the user's."""
        return sum(self.items.values())

    @property
    def download_bytes(self) -> int:
        """Size of the published archives, or of the files where there are none; 0 where it is not known."""
        files = self.layouts[0].files if self.layouts else ()
        archives = [file for file in files if not file.needed] or list(files)
        return sum(file.bytes for file in archives if file.bytes) if all(file.bytes for file in archives) else 0


def card_names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_card(name: str, folder: Path = FOLDER) -> Card:
    """The card of a data set.

    A card with the key ``like`` has all that it does not say itself from the card named there.

    Raises:
        DataError: no such card, or it is not as :class:`Card` describes it.
    """
    path = folder / f"{name}.yaml"
    card = _build(Card, _read(path, folder) | {"name": name}, path)
    if card.obtained not in OBTAINED:
        raise DataError(f"{path}: obtained must be one of {', '.join(OBTAINED)}, got '{card.obtained}'")
    unknown = sorted(set(card.items) - set(PARTS))
    if unknown:
        raise DataError(f"{path}: items must be of {', '.join(PARTS)}, got '{unknown[0]}'")
    return card


def _read(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({first_line(error)}); restore it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold keys and values")
    base = content.pop("like", None)
    return content if base is None else _read(folder / f"{base}.yaml", folder) | content


def _build(cls: type[T], values: Any, path: Path) -> T:
    """A dataclass of a mapping, and of the mappings in it.

    Raises:
        DataError: a key that is unknown or missing, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise DataError(f"{path}: a {cls.__name__} must hold keys and values, got {values!r}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise DataError(f"{path}: a {cls.__name__} has no key '{key}'{did_you_mean(str(key), known)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING:
            raise DataError(f"{path}: the {cls.__name__} needs the key '{name}'")
    for key, value in values.items():
        kinds = _KINDS[str(known[key].type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(f"{path}: '{key}' must be {known[key].type}, got {value!r}")
    inner = {"layouts": Layout, "files": CardFile}
    return cls(
        **{
            key: tuple(_build(inner[key], item, path) for item in value) if key in inner else value
            for key, value in values.items()
        }
    )


# Of annotations, as they are written above.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str,),
    "int | None": (int,),
    "Mapping[str, int]": (dict,),
    "Sequence[int] | str": (list, str),
    "Sequence[Layout]": (list,),
    "Sequence[CardFile]": (list,),
    "Sequence[str]": (list,),
}
