"""What active learning is asked for: the protocol, and the score that acquires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.evaluation.scoring import Scored

T = TypeVar("T", "Protocol", "Acquisition")


@dataclass(frozen=True)
class Protocol:
    """How labels are acquired, the section ``active_learning``.

    Args:
        initial_labels: to start with, as many of each class (up to one).
        labels_per_step: acquired at once after each training.
        max_labels: the last training has at most this many.
        epoch_items: length of a training epoch, in which every labelled item comes equally often (up to one).
        warm: each step trains on from the last one's weights, with a new optimizer; else from scratch.
        pool_extra: name of a data set whose training split joins the pool, with its own labels.
        seeds: one run for each.

    Raises:
        ConfigError: a value out of its range.
    """

    initial_labels: int
    labels_per_step: int
    max_labels: int
    epoch_items: int
    warm: bool
    pool_extra: str | None
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        for key in ("initial_labels", "labels_per_step", "epoch_items"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"active_learning.{key}: must be a whole number of at least 1, got {value}")
        if self.max_labels < self.initial_labels:
            raise ConfigError(
                f"active_learning.max_labels: {self.max_labels} is less than active_learning.initial_labels,"
                f" {self.initial_labels}; raise it"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"active_learning.seeds: a seed is named twice in {list(self.seeds)}; name it once")


@dataclass(frozen=True)
class Acquisition:
    """Which inputs of the pool are labelled next, the section ``acquisition``.

    Args:
        name: what tables call it.
        score: name of the method's score that orders the pool; ``None`` draws at random.
        needs: scores that a method must have for `score` to mean what it should.
        lowest_first: whether the least or the most in-distribution inputs are acquired.
        example: a model configuration that has these scores, for messages.
    """

    name: str
    score: str | None
    needs: Sequence[str]
    lowest_first: bool
    example: str

    def check(self, scored: Scored, model: str) -> np.ndarray:
        """Whether a method that answered like `scored` can be asked; its probabilities ``[N, C]``.

        Raises:
            ConfigError: it has no classes, or not the scores that are needed.
        """
        if scored.probs is None:
            raise ConfigError(f"model={model}: active learning trains classifiers; choose model={self.example}")
        missing = [name for name in self.needs if name not in scored.scores]
        if missing:
            raise ConfigError(
                f"acquisition={self.name}: model={model} has no score '{missing[0]}' (it has"
                f" {', '.join(scored.scores)}); choose model={self.example}, for example, or another acquisition"
            )
        return scored.probs


def read(kind: type[T], section: Mapping[str, Any], name: str) -> T:
    """The settings of the section called `name`.

    Raises:
        ConfigError: a key that does not exist or is missing, or a value out of its range.
    """
    known = [field.name for field in fields(kind)]
    for key in section:
        if key not in known:
            raise ConfigError(f"{name}.{key}: there is no such setting{did_you_mean(key, known)}")
    for key in known:
        if key not in section:
            raise ConfigError(f"{name}.{key}: a value must be given")
    return kind(**section)
