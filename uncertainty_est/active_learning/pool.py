"""The pool of active learning: what it is made of, what is labelled first, and what next."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from uncertainty_est.building import build_data
from uncertainty_est.config import build
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.source import Source, Split, SplitName
from uncertainty_est.errors import ConfigError, DataError


class Mixed(Source):
    """A data set whose training split is followed by that of another one; validation and test are its own.

    Args:
        own: the data set.
        extra: the other one, of the same shape and space.

    Raises:
        ConfigError: the spaces differ.
    """

    def __init__(self, own: Source, extra: Source) -> None:
        if own.space != extra.space:
            raise ConfigError(
                f"active_learning.pool_extra: {extra.name} is in {extra.space} space and {own.name} in {own.space}"
                f" space; name a set whose items go through the same transform"
            )
        self.name = f"{own.name} + {extra.name}"
        self.shape, self.space = own.shape, own.space
        self.own, self.extra = own, extra

    def prepare(self) -> None:
        self.own.prepare()
        self.extra.prepare()

    def split(self, name: SplitName) -> Split:
        split = self.own.split(name)
        if name != "train":
            return split
        more = self.extra.split("train")
        if (split.x.shape[1:], split.x.dtype) != (more.x.shape[1:], more.x.dtype):
            raise DataError(
                f"active_learning.pool_extra: items of {self.extra.name} are {more.x.dtype} of shape"
                f" {tuple(more.x.shape[1:])}, those of {self.own.name} {split.x.dtype} of shape"
                f" {tuple(split.x.shape[1:])}; name a set of the same shape"
            )
        # Negative, so that no position is another item's in the data set's own file.
        indices = torch.cat([split.indices, -1 - more.indices])
        return Split(torch.cat([split.x, more.x]), torch.cat([split.y, more.y]), indices, split.part)


class Pool:
    """The training split of a run, N items, before any of it is labelled.

    Args:
        fixed: the run's configuration.
        extra: name of a data set among ``fixed.sources`` whose training split joins the pool.

    Attributes:
        data: the run's data, set up.
        labels: ``[N]`` int64.
        extra: ``[N]`` bool, which items are of the set that joined.
        digest: SHA-256 of which items these are and of their labels.

    Raises:
        ConfigError: sets that cannot be mixed.
        DataError: a data set that cannot be used.
    """

    def __init__(self, fixed: Mapping[str, Any], extra: str | None) -> None:
        self.data: OODDataModule = build_data(fixed)
        if extra is not None:
            self.data.id_source = Mixed(self.data.id_source, build(fixed["sources"][extra]))
        self.data.prepare_data()
        self.data.setup("fit")
        self.labels = self.data.training_labels.numpy()
        indices = self.data.split_indices()["train"]
        self.extra = indices < 0
        self.digest = hashlib.sha256(indices.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)


def initial_rows(labels: np.ndarray, num_classes: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n items such that the numbers of any two classes differ by at most one.

    Args:
        labels: ``[N]`` integers in [0, C).
        num_classes: C, at most n.
        n: how many.
        rng: draws which classes have one more, and which items.

    Returns:
        ``[n]`` int64 positions, none twice, class by class.

    Raises:
        ConfigError: fewer than one a class, or a class has too few items.
    """
    if n < num_classes:
        raise ConfigError(f"active_learning.initial_labels: {n} is less than one for each of {num_classes} classes")
    counts = np.full(num_classes, n // num_classes)
    counts[rng.permutation(num_classes)[: n % num_classes]] += 1
    chosen = []
    for c, count in enumerate(counts):
        members = np.flatnonzero(labels == c)
        if len(members) < count:
            raise ConfigError(
                f"active_learning.initial_labels: {n} takes {count} items of class {c}, which has"
                f" {len(members)} in the training split; lower it"
            )
        chosen.append(rng.choice(members, count, replace=False))
    return np.concatenate(chosen)


def lowest(scores: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Positions ``[min(k, N)]`` of the k lowest of ``scores: [N]``, the lowest first; ties are broken by lot."""
    order = rng.permutation(len(scores))
    return order[np.argsort(scores[order], kind="stable")[:k]]
