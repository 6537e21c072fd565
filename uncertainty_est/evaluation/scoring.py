"""Score a method on data sets: every input goes through the network once, whatever is computed from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import DataError
from uncertainty_est.files import write_npz
from uncertainty_est.models.base import Method

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """A method's answers on one data set of N inputs.

    Attributes:
        labels: ``[N]``.
        probs: ``[N, C]`` float64, or ``None``.
        scores: name to ``[N]`` float64, higher = more in-distribution.
        quantities: name to ``[N]``, what else the method tells of the data, in units of their own.
    """

    labels: np.ndarray
    probs: np.ndarray | None
    scores: dict[str, np.ndarray]
    quantities: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredRun:
    """A method's answers on the in-distribution test set and on every OOD set that could be read.

    Attributes:
        id_data: the in-distribution test set.
        ood: by name of the OOD set.
        failed: name of an OOD set to the sentence that says why it could not be read.
    """

    id_data: Scored
    ood: dict[str, Scored]
    failed: dict[str, str] = field(default_factory=dict)


def score_loader(method: Method, loader: Iterable[tuple[Tensor, Tensor]], max_batches: int | None = None) -> Scored:
    """Answers of `method` on the first `max_batches` batches of `loader` (all of them if ``None``).

    Results stay on the device until the last batch; between batches only the count of non-finite scores comes back.

    Raises:
        DataError: there was no batch.
    """
    labels: list[Tensor] = []
    probs: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {}
    for x, y in islice(loader, max_batches):
        prediction = method.predict(x)
        labels.append(y)
        if prediction.probs is not None:
            probs.append(prediction.probs)
        for name, values in prediction.scores.items():
            scores.setdefault(name, []).append(values)
    if not labels:
        raise DataError("there is nothing to score: the data set is empty")
    arrays = {name: _to_numpy(values).astype(np.float64) for name, values in scores.items()}
    return Scored(
        labels=_to_numpy(labels),
        probs=_to_numpy(probs).astype(np.float64) if probs else None,
        scores=arrays,
        quantities=method.quantities(arrays),
    )


def score_run(
    method: Method,
    data: OODDataModule,
    ood_names: Sequence[str],
    *,
    id_name: str | None = None,
    device: torch.device | str = "cpu",
    max_batches: int | None = None,
) -> ScoredRun:
    """Answers of `method` on the ID test set and on the test split of every named OOD set, one pass each.

    `id_name` names a test set of `data` that stands in for its own ID test set; it goes through the same transform.

    An OOD set that cannot be read is reported in ``failed`` and does not hinder the others.
    """
    method = method.to(device)
    id_loader = data.ood_loader(id_name, "test", device=device) if id_name else data.id_test_loader(device=device)
    id_data = score_loader(method, id_loader, max_batches)
    ood: dict[str, Scored] = {}
    failed: dict[str, str] = {}
    for name in ood_names:
        try:
            ood[name] = score_loader(method, data.ood_loader(name, "test", device=device), max_batches)
        except DataError as error:
            failed[name] = str(error)
            log.error("OOD set '%s' is left out: %s", name, error)
    return ScoredRun(id_data, ood, failed)


def save_scores(path: Path, scored: ScoredRun) -> None:
    """Write all labels, probabilities and scores to one ``.npz``, from which tables and figures can be made again.

    Keys are ``<data set>/<quantity>``, with ``id`` for the in-distribution set and ``score:<name>`` for scores.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, data in {"id": scored.id_data, **scored.ood}.items():
        arrays[f"{name}/labels"] = data.labels
        if data.probs is not None:
            arrays[f"{name}/probs"] = data.probs.astype(np.float32)
        for score, values in data.scores.items():
            # A member of a .npz is a file in a zip archive: a slash in "p(x)/y" would become a folder.
            arrays[f"{name}/score:{score.replace('/', '|')}"] = values
    write_npz(path, arrays)


def _to_numpy(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()
