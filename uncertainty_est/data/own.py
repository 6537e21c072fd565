"""What a user's own data set holds, and the command that trains on it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.image_files import read_image
from uncertainty_est.data.sources.image_folder import ImageFolder
from uncertainty_est.data.sources.own_table import OwnTable
from uncertainty_est.data.sources.pack import pack_parts, read_arrays
from uncertainty_est.own_data import Part, kind_of

# Images that are opened to tell their size; the others' is told when they are decoded.
_LOOKED_AT = 100
# Images are not asked to be larger than this by default: the configured network is one for small images.
_LARGEST = 32


@dataclass(frozen=True)
class Own:
    """A data set of one's own.

    Attributes:
        kind: of it, as in ``dataset=<kind>``.
        facts: what it holds, a line each.
        data_shape: that suits it.
        num_classes: number of its classes, 0 where it has none.
        options: overrides that it needs beside these.
    """

    kind: str
    facts: Sequence[str]
    data_shape: Sequence[int]
    num_classes: int
    options: Sequence[str] = ()

    def command(self, path: Path) -> str:
        """The command line that trains on it; without classes, the words that make it an OOD set of another."""
        if not self.num_classes:
            name = path.name if path.is_dir() else path.stem
            words = [f"fixed.test_ood_datasets=[{_value(name)}]", f"fixed.data_root={_value(str(path.parent))}"]
            return "an OOD set beside another: " + " ".join(map(_word, words))
        model = "fc_ddu" if len(self.data_shape) == 1 else "img_ddu"
        shape = ",".join(map(str, self.data_shape))
        words = [
            f"dataset={self.kind}",
            f"model={model}",
            f"fixed.path={_value(str(path))}",
            f"fixed.data_shape=[{shape}]",
            f"fixed.num_classes={self.num_classes}",
            *self.options,
        ]
        return "python train_local.py " + " ".join(map(_word, words))


def describe(path: Path, target: str | None = None, ignore: Sequence[str] = ()) -> Own:
    """Look into a folder or file.

    Args:
        path: of the data set.
        target: column of the classes of a table, see :class:`OwnTable`.
        ignore: columns of a table to leave out.

    Raises:
        DataError: it is no data set, or a damaged one.
    """
    kind = kind_of(path)
    if kind == "table":
        return _table(path, target, ignore)
    return _pack(path) if kind == "npz" else _folder(path)


def _table(path: Path, target: str | None, ignore: Sequence[str]) -> Own:
    header = OwnTable(path=str(path), shape=[1], target=target, ignore=list(ignore))
    source = OwnTable(path=str(path), shape=[len(header.columns)], target=target, ignore=list(ignore))
    rows = {part: len(source.load_once(part)[1]) for part in source.files}
    classes = source.classes_by_number
    options = [f"+fixed.sources.table.target={_value(target)}"] if target is not None else []
    options += [f"+fixed.sources.table.ignore=[{','.join(map(_value, ignore))}]"] * bool(ignore)
    return Own(
        "table",
        [
            _counts(rows, "rows"),
            f"{len(source.columns)} features: {_some(source.columns)}",
            _classes(classes) if classes else "no classes: there is no column label, target or class, and no --target",
        ],
        [len(source.columns)],
        len(classes),
        options,
    )


def _pack(path: Path) -> Own:
    arrays = {part: read_arrays(path, part) for part in pack_parts(path)}
    shape = next(x.shape[1:] for x, _ in arrays.values())
    images = len(shape) > 1
    classes = max(int(y.max()) for _, y in arrays.values()) + 1
    data_shape = [shape[2] if len(shape) == 3 else 1, *shape[:2]] if images else list(shape)
    return Own(
        "npz" if images else "npz_table",
        [
            _counts({part: len(y) for part, (_, y) in arrays.items()}, "images" if images else "rows"),
            f"items of shape {'x'.join(map(str, shape))}, {next(iter(arrays.values()))[0].dtype}",
            f"labels 0 to {classes - 1}" if classes else "no labels",
        ],
        data_shape,
        classes if "train" in arrays else 0,
    )


def _folder(path: Path) -> Own:
    source = ImageFolder(name=path.name, root=str(path), shape=[3, 1, 1])
    source.prepare()
    parts: list[Part] = ["all"]
    if source.official_test:
        there = {"train": (path / "train").is_dir(), "val": source.official_val, "test": True}
        parts = [part for part in SPLIT_NAMES if there[part]]
    listings = {part: source.listing(part) for part in parts}
    files = [listing.folder / name for listing, _ in listings.values() for name in listing.names][:_LOOKED_AT]
    looks = []
    for file in files:
        read_image(file, (1, 1, 1))  # a damaged one is told with its name
        with Image.open(file) as image:
            looks.append((image.height, image.width, image.mode in ("1", "L", "LA", "I", "I;16", "F")))
    sizes = Counter((height, width) for height, width, _ in looks)
    channels = 1 if all(grey for _, _, grey in looks) else 3
    (height, width), count = sizes.most_common(1)[0]
    if len(sizes) > 1 or max(height, width) > _LARGEST:
        height = width = _LARGEST
    labels = np.concatenate([y.numpy() for _, y in listings.values()])
    classes = source.class_names if labels.max() >= 0 else []
    most = f"{sizes.most_common(1)[0][0][0]}x{sizes.most_common(1)[0][0][1]}"
    return Own(
        "folder",
        [
            _counts({part: len(y) for part, (_, y) in listings.items()}, "images"),
            f"{'grey' if channels == 1 else 'colour'}, {most}"
            + f" ({count} of the first {len(looks)})" * (count < len(looks)),
            _classes(classes) if classes else "no classes: the images are in no folders of their own",
        ],
        [channels, height, width],
        len(classes),
    )


def _counts(parts: Mapping[Part, int], what: str) -> str:
    return ", ".join(f"{n:,} {what}" + f" to {part}" * (part != "all") for part, n in parts.items())


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} classes: {_some(names)}"


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + ", …" * (len(names) > most)


def _value(text: str) -> str:
    """A value in an override: quoted for Hydra where it has signs that mean something there."""
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _word(text: str) -> str:
    """A word of a command line: quoted for the shell where it must be, which lists need not."""
    return text if re.fullmatch(r"[\w./=,+\[\]-]+", text) else shlex.quote(text)
