"""All data of a run: one in-distribution set, outliers to train on, and OOD sets to validate and test on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from uncertainty_est.data.loader import JointLoader, TensorLoader, Transform
from uncertainty_est.data.source import SPLIT_NAMES, Source, Split, SplitName
from uncertainty_est.errors import DataError

log = logging.getLogger(__name__)


class OODDataModule(pl.LightningDataModule):
    """In- and out-of-distribution data behind one transform, fitted on the in-distribution training split.

    Every data set is read once. OOD sets are read when their loader is first used, so that one that cannot
    be read does not hinder the others.

    Args:
        id_source: the in-distribution set.
        transform: turns raw items into the network's input, for all sets.
        data_shape: shape that every item must have.
        num_classes: C, the in-distribution labels are 0, ..., C - 1.
        batch_size: of training, per process, for in-distribution items and for outliers.
        eval_batch_size: of everything else.
        ood_source: outliers that the method trains on.
        val_ood_sources: OOD sets for validation, by name.
        test_ood_sources: OOD sets for testing, by name.
        seed: of order and augmentation in training.
    """

    def __init__(
        self,
        *,
        id_source: Source,
        transform: Transform,
        data_shape: Sequence[int],
        num_classes: int,
        batch_size: int,
        eval_batch_size: int,
        ood_source: Source | None = None,
        val_ood_sources: Mapping[str, Source],
        test_ood_sources: Mapping[str, Source],
        seed: int,
    ) -> None:
        super().__init__()
        self.id_source = id_source
        self.transform = transform
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.ood_source = ood_source
        self.ood_sources: dict[str, dict[str, Source]] = {
            "val": dict(val_ood_sources),
            "test": dict(test_ood_sources),
        }
        self.seed = seed
        self.training_position: Mapping[str, Mapping[str, int]] | None = None
        """Where the next training loader goes on from, see :meth:`JointLoader.state_dict`."""
        self._epoch_items: int | None = None
        self._id_splits: dict[SplitName, Split] = {}
        self._whole_training_split: Split | None = None
        self._ood_splits: dict[tuple[int, SplitName], Split] = {}

    def prepare_data(self) -> None:
        """Download or find the files of every set.

        Raises:
            DataError: a set cannot be had.
        """
        sources = [self.id_source, *self.ood_sources["val"].values(), *self.ood_sources["test"].values()]
        for source in [*sources, *([self.ood_source] if self.ood_source else [])]:
            source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load and check the in-distribution splits and fit the transform, whatever the stage, once.

        Raises:
            DataError: wrong shape, labels outside [0, C), or splits that share an item.
        """
        if self._id_splits:
            return
        splits = {name: self._checked(self.id_source, name) for name in SPLIT_NAMES}
        self._check_labels(splits)
        self._check_disjoint(splits)
        if self.id_source.space == "raw":
            self.transform.fit(splits["train"].x)
        self._id_splits = splits

    def train_on(self, rows: Tensor, epoch_items: int | None = None) -> None:
        """From now on train, and fit after training, on a part of the training split; the transform stays as it is.

        Args:
            rows: ``[n]`` int64 positions in the whole training split, none twice.
            epoch_items: number of items in a training epoch, each as often as the others up to one; ``None`` for n.
        """
        whole = self._whole_training_split or self._id_split("train")
        self._whole_training_split = whole
        self._id_splits["train"] = whole.take(rows)
        self._epoch_items = epoch_items

    def train_dataloader(self) -> JointLoader:
        """Shuffled and augmented batches ``{"id": ..., "ood": ...}``."""
        loader = self._joint("train", self.batch_size, training=True)
        if self.training_position is not None:
            loader.load_state_dict(self.training_position)
            self.training_position = None
        return loader

    def val_dataloader(self) -> JointLoader:
        """Batches of the validation splits, in order and without augmentation."""
        return self._joint("val", self.eval_batch_size, training=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Nothing: our loaders' batches are there, and a search for their tensors takes time in every step."""
        return batch

    def plain_loader(
        self, split: SplitName, *, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1
    ) -> TensorLoader:
        """Batches ``(x, y)`` of an in-distribution split, in order and without augmentation."""
        return TensorLoader(
            self._id_split(split),
            self.eval_batch_size,
            transform=self._transform_of(self.id_source),
            device=device,
            rank=rank,
            world_size=world_size,
        )

    def training_items_loader(self, rows: Tensor, *, device: torch.device | str = "cpu") -> TensorLoader:
        """Like :meth:`plain_loader`, of any positions ``rows: [n]`` in the whole training split."""
        split = self._whole_training_split or self._id_split("train")
        return TensorLoader(
            split.take(rows), self.eval_batch_size, transform=self._transform_of(self.id_source), device=device
        )

    def plain_outlier_loader(self, split: SplitName, *, device: torch.device | str = "cpu") -> TensorLoader | None:
        """Like :meth:`plain_loader`, of the outliers that the method trains on; ``None`` where there are none."""
        if self.ood_source is None:
            return None
        self._id_split("train")  # the transform is fitted
        return TensorLoader(
            self._ood_split(self.ood_source, split),
            self.eval_batch_size,
            transform=self._transform_of(self.ood_source),
            device=device,
        )

    def id_test_loader(self, *, device: torch.device | str = "cpu") -> TensorLoader:
        """Batches ``(x, y)`` of the in-distribution test split."""
        return self.plain_loader("test", device=device)

    def ood_loader(
        self, name: str, split: Literal["val", "test"], *, device: torch.device | str = "cpu"
    ) -> TensorLoader:
        """Batches ``(x, y)`` of one OOD set, read when the loader is first iterated.

        Raises:
            DataError: no set of this name; from the loader itself: the set cannot be read or has another
                shape.
        """
        sources = self.ood_sources[split]
        if name not in sources:
            raise DataError(f"there is no OOD set '{name}' for {split} (there are: {', '.join(sources) or 'none'})")
        self._id_split("train")  # the transform is fitted
        source = sources[name]
        return TensorLoader(
            lambda: self._ood_split(source, split),
            self.eval_batch_size,
            transform=self._transform_of(source),
            device=device,
        )

    def ood_loaders(
        self, split: Literal["val", "test"], *, device: torch.device | str = "cpu"
    ) -> dict[str, TensorLoader]:
        """:meth:`ood_loader` of every OOD set, by name."""
        return {name: self.ood_loader(name, split, device=device) for name in self.ood_sources[split]}

    @property
    def training_labels(self) -> Tensor:
        """Labels of the training items, ``[N]`` int64."""
        return self._id_split("train").y

    @property
    def class_counts(self) -> Tensor:
        """Number of training items of each class, ``[C]`` int64."""
        return torch.bincount(self.training_labels, minlength=self.num_classes)

    def split_indices(self) -> dict[str, np.ndarray]:
        """Positions, in the in-distribution set's own files, of the items of each split."""
        return {name: self._id_split(name).indices.numpy() for name in SPLIT_NAMES}

    # ------------------------------------------------------------------------------------------------ loading

    def _joint(self, name: SplitName, batch_size: int, *, training: bool) -> JointLoader:
        device, rank, world_size = self._placement()

        def loader(source: Source, split: Split, seed: int, epoch_items: int | None = None) -> TensorLoader:
            transform = self._transform_of(source)
            return TensorLoader(
                split,
                batch_size,
                transform=transform,
                augment=training and transform is not None,
                shuffle=training,
                epoch_items=epoch_items,
                seed=seed,
                device=device,
                rank=rank,
                world_size=world_size,
            )

        id_loader = loader(self.id_source, self._id_split(name), self.seed, self._epoch_items if training else None)
        if self.ood_source is None:
            return JointLoader(id_loader)
        # Another seed, so that outliers that happen to be the same set come in another order.
        ood_loader = loader(self.ood_source, self._ood_split(self.ood_source, name), self.seed + 1)
        return JointLoader(id_loader, ood_loader)

    def _placement(self) -> tuple[torch.device, int, int]:
        if self.trainer is None:
            return torch.device("cpu"), 0, 1
        return self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size

    def _transform_of(self, source: Source) -> Transform | None:
        return self.transform if source.space == "raw" else None

    def _id_split(self, name: SplitName) -> Split:
        self.setup()
        return self._id_splits[name]

    def _ood_split(self, source: Source, name: SplitName) -> Split:
        key = (id(source), name)
        if key not in self._ood_splits:
            self._check_columns(source)
            self._ood_splits[key] = self._checked(source, name)
        return self._ood_splits[key]

    # ------------------------------------------------------------------------------------------------- checks

    def _checked(self, source: Source, name: SplitName) -> Split:
        split = source.split(name)
        if not len(split):
            raise DataError(f"{source.name}: its {name} split is empty")
        shape = tuple(split.x.shape[1:])
        if shape != self.data_shape:
            raise DataError(
                f"{source.name}: items have the shape {shape}, but fixed.data_shape is {self.data_shape}; set"
                f" fixed.data_shape={list(shape)}"
            )
        return split

    def _check_columns(self, source: Source) -> None:
        """The same features in another order would be other inputs."""
        ours, theirs = self.id_source.columns, source.columns
        if ours and theirs and ours != theirs and set(ours) == set(theirs):
            raise DataError(
                f"{source.name}: its columns come in another order than those of {self.id_source.name}; order them as"
                f" {', '.join(ours)}"
            )

    def _check_labels(self, splits: Mapping[SplitName, Split]) -> None:
        fits = max(int(split.y.max()) for split in splits.values()) + 1
        remedy = f"set fixed.num_classes={fits}" if fits else "an in-distribution set needs labels"
        if 0 < fits < self.num_classes:
            log.warning(
                "%s: fixed.num_classes is %d, but no item has a label above %d; if there are no more classes, %s",
                self.id_source.name,
                self.num_classes,
                fits - 1,
                remedy,
            )
        for name, split in splits.items():
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"{self.id_source.name}: labels of its {name} split range from {low} to {high}, but"
                    f" fixed.num_classes is {self.num_classes}, which allows 0 to {self.num_classes - 1};"
                    f" {remedy}"
                )

    def _check_disjoint(self, splits: Mapping[SplitName, Split]) -> None:
        for part in {split.part for split in splits.values()}:
            indices = torch.cat([split.indices for split in splits.values() if split.part == part])
            repeated = len(indices) - len(indices.unique())
            if repeated:
                names = ", ".join(name for name, split in splits.items() if split.part == part)
                raise DataError(
                    f"{self.id_source.name}: {repeated} items of its '{part}' file are more than once in the"
                    f" splits {names}; splits must be disjoint"
                )
