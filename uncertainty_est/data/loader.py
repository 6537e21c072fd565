"""Finished batches from tensors in memory: sliced, moved, transformed, never collated item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.source import Split
from uncertainty_est.errors import DataError

Batch = tuple[Tensor, Tensor]

# Below this the whole split stays on the GPU, so that no batch has to be copied there.
_RESIDENT_BYTES = 2 * 2**30


class Transform(Protocol):
    """What turns a source's tensors into the network's input, see :mod:`uncertainty_est.data.transforms`."""

    def fit(self, x_train: Tensor) -> Transform: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def invert(self, x: Tensor) -> Tensor: ...

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


class TensorLoader:
    """Batches ``(x [B, *data_shape] float32, y [B] int64)`` of a split, on `device`.

    Batches are balanced: ``ceil(N / batch_size)`` of them, with sizes that differ by at most one, so that
    none is too small for batch normalisation. Every item comes once in an epoch, and all ranks have the
    same number of batches, as collective operations need. Without shuffling, rank r has the items r, r +
    world_size, ... Shuffling draws one permutation for all ranks in each epoch and leaves out the few items
    that would make ranks unequal. With `epoch_items` an epoch has that many items, whatever N: it goes through the
    split again and again, each time in another order, so that items come equally often up to one.

    Args:
        split: the items, or a function that loads them when they are first needed.
        batch_size: at most this many items in a batch.
        transform: applied to every batch; ``None`` for items that are already the network's input.
        augment: also apply the transform's random augmentation.
        shuffle: a new order in every epoch.
        epoch_items: length of a shuffled epoch; ``None`` for N.
        seed: of order and augmentation; with the number of the epoch (and the rank) it determines both.
        device: where batches are put.
        rank: of this process.
        world_size: number of processes that share the split.

    Raises:
        ValueError: a batch size, rank or length that makes no sense, or augmentation without a transform.
    """

    def __init__(
        self,
        split: Split | Callable[[], Split],
        batch_size: int,
        *,
        transform: Transform | None = None,
        augment: bool = False,
        shuffle: bool = False,
        epoch_items: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {rank} with world_size {world_size}")
        if augment and transform is None:
            raise ValueError("augment needs a transform, got transform=None")
        if epoch_items is not None and (epoch_items < 1 or not shuffle):
            raise ValueError(f"epoch_items must be at least 1 and needs shuffle=True, got {epoch_items}")
        self.batch_size = batch_size
        self.transform = transform
        self.augment = augment
        self.shuffle = shuffle
        self.epoch_items = epoch_items
        self.seed = seed
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        """Number of the epoch that begins next."""
        self._given = 0
        self._skipped = 0
        self._split = split
        self._tensors: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Number of batches, the same on every rank.

        Raises:
            DataError: the split cannot be loaded or has fewer items than there are processes.
        """
        n = self.epoch_items or len(self._load()[1])
        fewest = n // self.world_size
        if not fewest:
            raise DataError(f"a split of {n} items cannot be shared by {self.world_size} processes; use fewer")
        most = fewest if self.shuffle else -(-n // self.world_size)
        # With batch_size 1 a rank with one item less than another would run out of items: none gets an
        # empty batch.
        return min(-(-most // self.batch_size), fewest)

    def __iter__(self) -> Iterator[Batch]:
        """An epoch; it begins with its first batch, not before."""
        count = len(self)
        epoch, self.epoch = self.epoch, self.epoch + 1
        given, self._skipped = self._skipped, 0
        self._given = given
        x, y = self._load()
        rows = self._rows(len(y), epoch).to(x.device)
        generator = torch.Generator(self.device).manual_seed(_seed(self.seed, epoch, self.rank))
        for number, part in enumerate(rows.tensor_split(count), 1):
            if number > given:
                self._given = number
                yield self._finish(self._take(x, part), generator), self._take(y, part)
            elif self.augment and self.transform is not None:
                self.transform.augment(self._take(x, part), generator)  # for its random numbers
        self._given = 0

    def state_dict(self) -> dict[str, int]:
        """Number of the epoch under way and of the batches that it has given, or of the next epoch and 0."""
        if 0 < self._given < len(self):
            return {"epoch": self.epoch - 1, "batches": self._given}
        return {"epoch": self.epoch, "batches": 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration go on from there."""
        self.epoch, self._skipped, self._given = state["epoch"], state["batches"], 0

    def end_epoch(self) -> None:
        """Forget the epoch under way: the next iteration begins another, wherever this one was left."""
        self._given = self._skipped = 0

    def _rows(self, n: int, epoch: int) -> Tensor:
        """Positions of this rank's items in the order of this epoch."""
        if not self.shuffle:
            return torch.arange(self.rank, n, self.world_size)
        items = self.epoch_items or n
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
        order = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-items // n))])[:items]
        return order[self.rank :: self.world_size][: items // self.world_size]

    def _finish(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.transform is None:
            return x.float()
        return self.transform(self.transform.augment(x, generator) if self.augment else x)

    def _load(self) -> tuple[Tensor, Tensor]:
        if self._tensors is None:
            split = self._split if isinstance(self._split, Split) else self._split()
            x, y = split.x, split.y
            if self.device.type == "cuda" and x.nbytes < _RESIDENT_BYTES:
                x, y = x.to(self.device), y.to(self.device)
            self._tensors = x, y
        return self._tensors

    def _take(self, tensor: Tensor, rows: Tensor) -> Tensor:
        return self._to_device(tensor.index_select(0, rows))  # copies whole rows, indexing by a tensor single numbers

    def _to_device(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self.device.type:  # "cuda" and "cuda:0" are one device, and unequal
            return tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class JointLoader:
    """Dict batches ``{"id": (x, y)}``, with ``"ood": (x, y)`` where there are outliers.

    An epoch is one of the ID loader. The outliers go round: where their loader ends, its next epoch begins.
    Batches keep their own loader's size.

    Args:
        id_loader: in-distribution batches.
        ood_loader: batches of outliers, or ``None``.
    """

    def __init__(self, id_loader: TensorLoader, ood_loader: TensorLoader | None = None) -> None:
        self.id_loader = id_loader
        self.ood_loader = ood_loader

    def __len__(self) -> int:
        return len(self.id_loader)

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Where both streams are, for a process that goes on from here."""
        return {name: loader.state_dict() for name, loader in self._loaders().items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Let the next iteration go on from there."""
        for name, loader in self._loaders().items():
            loader.load_state_dict(state[name])

    def end_epoch(self) -> None:
        """Forget the epoch under way, see :meth:`TensorLoader.end_epoch`."""
        for loader in self._loaders().values():
            loader.end_epoch()

    def _loaders(self) -> dict[str, TensorLoader]:
        return {"id": self.id_loader} | ({"ood": self.ood_loader} if self.ood_loader is not None else {})

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        if self.ood_loader is None:
            return ({"id": batch} for batch in self.id_loader)
        # The ID stream comes first in zip: it is the one that ends.
        return (
            {"id": batch, "ood": ood} for batch, ood in zip(self.id_loader, _endless(self.ood_loader), strict=False)
        )


def _endless(loader: TensorLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def _seed(*numbers: int) -> int:
    """One seed from several numbers, such that neighbouring ones have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
