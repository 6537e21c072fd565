"""What a data set is to everything else: three disjoint splits of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.errors import DataError
from uncertainty_est.own_data import Part

SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """One split of a data set, N items.

    Attributes:
        x: ``[N, C, H, W]`` uint8 images, ``[N, D]`` float32 tables, or float32 that is already the
            network's input. It may be a file mapped for reading: take rows of it, write to copies only.
        y: ``[N]`` int64 labels, -1 where the data set has none.
        indices: ``[N]`` int64 position of each item in the data set's own file.
        part: which of the data set's own files `indices` refers to; ``"all"`` where there is only one.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    part: Part

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Split:
        """The items at some positions, ``rows: [n]`` int64, in that order."""
        return Split(self.x[rows], self.y[rows], self.indices[rows], self.part)


class Source(ABC):
    """A data set, in- or out-of-distribution.

    Attributes:
        name: what messages call it.
        shape: shape of one item, ``(C, H, W)`` or ``(D,)``.
        space: ``"raw"`` items go through the transform of the in-distribution set, ``"network"`` items are
            fed to the network as they are.
        columns: names of a table's features, in order; ``None`` where they have none.
    """

    name: str
    shape: Sequence[int]
    columns: ClassVar[Sequence[str] | None] = None
    space: Literal["raw", "network"] = "raw"

    @abstractmethod
    def prepare(self) -> None:
        """Download what is missing and check, cheaply, that the data set can be had.

        Raises:
            DataError: it cannot.
        """

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """The items of one split; no item is in two of them.

        Raises:
            DataError: the data set is missing, unreadable, or cannot be given the shape asked for.
        """


@dataclass(eq=False, kw_only=True)  # eq=False: equality and hash are the object's identity
class PartitionedSource(Source):
    """A data set that comes as one or more parts, or is generated whole, and is cut into three splits here.

    With an official test part, that part is the test split and validation is cut from the training part.
    With an official validation part as well, each part is a split, in its own order. Otherwise all three are
    cut from the whole. The cut is one permutation that depends on `split_seed` only: training first, then
    validation, then test. Items that must not be parted, such as copies of one, are permuted as one (:meth:`groups`).

    A subclass gives its `name` and :meth:`load`; one whose items need not all be read for a split gives
    :meth:`labels_of` and :meth:`items_of`, too. One with arguments of its own declares them as fields and is a
    dataclass too; one with an official test part says so in `official_test` and takes `test_fraction` out of its
    constructor.

    Args:
        shape: shape of one item.
        split_seed: seed of the permutation.
        val_fraction: of the training part (of the whole, where there is no official test part); unused where
            there is an official validation part.
        test_fraction: of the whole, where there is no official test part.
        classes: keep the items of these classes, relabelled 0, 1, ... in this order; ``None`` keeps all.
        max_items: keep a random subset of each split, of this size at most; ``None`` keeps all.

    Raises:
        ValueError: fractions outside [0, 1] or with a sum above 1, or `max_items` below 1.
    """

    official_test: ClassVar[bool] = False

    shape: Sequence[int]
    split_seed: int = 1
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    classes: Sequence[int] | None = None
    max_items: int | None = None
    _parts: dict[Part, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        val, test = self.val_fraction, self.test_fraction
        if not 0 <= val <= 1:
            raise ValueError(f"val_fraction must lie in [0, 1], got {val}")
        if test is None or not (test >= 0 and val + test <= 1 + 1e-9):  # a configuration can say null
            raise ValueError(f"test_fraction must lie in [0, 1 - val_fraction], got {test} with val_fraction {val}")
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {self.max_items}")
        self.shape = tuple(int(size) for size in self.shape)
        self.classes = None if self.classes is None else [int(c) for c in self.classes]

    @property
    def official_val(self) -> bool:
        """Whether a set with an official test part has a validation part, too."""
        return False

    @abstractmethod
    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        """All items ``[N, *shape]`` and labels ``[N]`` int64 of one part, in the file's order.

        Raises:
            DataError: it cannot be read or given the shape.
        """

    def groups(self, part: Part, n: int) -> np.ndarray:
        """``[n]`` integers for the items of a loaded part: those with the same one are cut into the same split."""
        return np.arange(n)

    def prepare(self) -> None:
        """Load it: what comes without files is small, and loading tells whether the shape can be made."""
        if not self.official_test:
            self.load_once("all")

    def load_once(self, part: Part) -> tuple[Tensor, Tensor]:
        """Like :meth:`load`, but a part that was loaded before is not read again."""
        if part not in self._parts:
            self._parts[part] = self.load(part)
        return self._parts[part]

    def labels_of(self, part: Part) -> Tensor:
        """Labels ``[N]`` int64 of all items of a part, in the file's order."""
        return self.load_once(part)[1]

    def items_of(self, part: Part, rows: Tensor) -> Tensor:
        """Items ``[n, *shape]`` at some positions of a part, ``rows: [n]`` int64, in that order."""
        return self.load_once(part)[0][rows]

    def split(self, name: SplitName) -> Split:
        if name not in SPLIT_NAMES:
            raise ValueError(f"split must be 'train', 'val' or 'test', got '{name}'")
        part: Part = name if self._is_whole(name) else "train" if self.official_test else "all"
        y = self.labels_of(part)
        rows = torch.from_numpy(self._rows(name, part, y.numpy()))
        labels = y[rows]
        if self.classes is not None:
            new_label = torch.full((int(y.max()) + 1,), -1)
            new_label[torch.tensor(self.classes)] = torch.arange(len(self.classes))
            labels = new_label[labels]
        return Split(self.items_of(part, rows), labels, rows, part)

    def _is_whole(self, name: SplitName) -> bool:
        """The split is a part, and not cut from one."""
        return self.official_test and (name == "test" or self.official_val)

    def _rows(self, name: SplitName, part: Part, y: np.ndarray) -> np.ndarray:
        """Positions in `part` of the items of a split, `[N]` int64."""
        rows = np.arange(len(y))
        if self.classes is not None:
            absent = sorted(set(self.classes) - set(y.tolist()))
            if absent:
                raise DataError(f"{self.name}: its {part} part has no items of the classes {absent}; change 'classes'")
            rows = rows[np.isin(y, self.classes)]
        if not self._is_whole(name):
            numbers, group = np.unique(self.groups(part, len(y))[rows], return_inverse=True)
            n = len(numbers)
            test_fraction = 0.0 if self.official_test else self.test_fraction
            stop_train = round(n * (1 - self.val_fraction - test_fraction))
            stop_val = round(n * (1 - test_fraction))
            bounds = {"train": (0, stop_train), "val": (stop_train, stop_val), "test": (stop_val, n)}
            place = np.argsort(np.random.default_rng(self.split_seed).permutation(n))[group]
            order = np.argsort(place, kind="stable")
            rows = rows[order[slice(*np.searchsorted(place[order], bounds[name]))]]
        if not len(rows):
            raise DataError(
                f"{self.name}: its {name} split is empty (val_fraction {self.val_fraction}, test_fraction"
                f" {self.test_fraction}, {len(y)} items in its {part} part); change the fractions or use"
                " another split"
            )
        if self.max_items is not None and self.max_items < len(rows):
            rng = np.random.default_rng([self.split_seed, SPLIT_NAMES.index(name)])
            rows = rows[np.sort(rng.permutation(len(rows))[: self.max_items])]
        return rows
