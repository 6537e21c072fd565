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
from uncertainty_est.evaluation.reading import Reading
from uncertainty_est.files import write_npz
from uncertainty_est.models.base import Method, Prediction

log = logging.getLogger(__name__)


# Before the names of what is computed after temperature scaling.
SCALED = "t_"


@dataclass(frozen=True)
class Scored:
    """A method's answers on one data set of N inputs.

    Attributes:
        labels: ``[N]``.
        probs: ``[N, C]`` float64, or ``None``.
        scores: name to ``[N]`` float64, higher = more in-distribution.
        quantities: name to ``[N]``, what else the method tells of the data, in units of their own.
        scaled: the answers after temperature scaling, if that was asked for.
    """

    labels: np.ndarray
    probs: np.ndarray | None
    scores: dict[str, np.ndarray]
    quantities: dict[str, np.ndarray] = field(default_factory=dict)
    scaled: Scored | None = None


@dataclass(frozen=True)
class ScoredRun:
    """A method's answers on the in-distribution test set and on every OOD set that could be read.

    Attributes:
        id_data: the in-distribution test set.
        ood: by name of the OOD set.
        failed: name of an OOD set to the sentence that says why it could not be read.
        temperature: of the scaled answers, if there are any.
        failed_scores: a sentence for each post-hoc score that was asked for and could not be computed.
    """

    id_data: Scored
    ood: dict[str, Scored]
    failed: dict[str, str] = field(default_factory=dict)
    temperature: float | None = None
    failed_scores: list[str] = field(default_factory=list)


def score_loader(
    method: Method,
    loader: Iterable[tuple[Tensor, Tensor]],
    max_batches: int | None = None,
    reading: Reading | None = None,
) -> Scored:
    """Answers of `method` on the first `max_batches` batches of `loader` (all of them if ``None``).

    With `reading` they hold what it adds to them.
    Results stay on the device until the last batch; between batches only the count of non-finite scores comes back.

    Raises:
        DataError: there was no batch.
    """
    labels: list[Tensor] = []
    predictions: list[list[Prediction]] = []
    for x, y in islice(loader, max_batches):
        labels.append(y)
        predictions.append(reading.predict(x) if reading else [method.predict(x)])
    if not labels:
        raise DataError("there is nothing to score: the data set is empty")
    y_all = _to_numpy(labels)
    plain, *scaled = zip(*predictions, strict=True)
    return _scored(method, y_all, plain, _scored(method, y_all, scaled[0]) if scaled else None)


def _scored(
    method: Method, labels: np.ndarray, predictions: Sequence[Prediction], scaled: Scored | None = None
) -> Scored:
    probs = [prediction.probs for prediction in predictions if prediction.probs is not None]
    scores = {
        name: _to_numpy([prediction.scores[name] for prediction in predictions]).astype(np.float64)
        for name in predictions[0].scores
    }
    return Scored(
        labels=labels,
        probs=_to_numpy(probs).astype(np.float64) if probs else None,
        scores=scores,
        quantities=method.quantities(scores),
        scaled=scaled,
    )


def score_run(
    method: Method,
    data: OODDataModule,
    ood_names: Sequence[str],
    *,
    id_name: str | None = None,
    device: torch.device | str = "cpu",
    max_batches: int | None = None,
    reading: Reading | None = None,
) -> ScoredRun:
    """Answers of `method` on the ID test set and on the test split of every named OOD set, one pass each.

    `id_name` names a test set of `data` that stands in for its own ID test set; it goes through the same transform.

    An OOD set that cannot be read is reported in ``failed`` and does not hinder the others.
    """
    method = method.to(device)
    id_loader = data.ood_loader(id_name, "test", device=device) if id_name else data.id_test_loader(device=device)
    id_data = score_loader(method, id_loader, max_batches, reading)
    ood: dict[str, Scored] = {}
    failed: dict[str, str] = {}
    for name in ood_names:
        try:
            loader = data.ood_loader(name, "test", device=device)
            ood[name] = score_loader(method, loader, max_batches, reading)
        except DataError as error:
            failed[name] = str(error)
            log.error("OOD set '%s' is left out: %s", name, error)
    temperature = reading.temperature if reading else None
    return ScoredRun(id_data, ood, failed, None if temperature is None else float(temperature))


def save_scores(path: Path, scored: ScoredRun) -> None:
    """Write all labels, probabilities and scores to one ``.npz``, from which tables and figures can be made again.

    Keys are ``<data set>/<quantity>``, with ``id`` for the in-distribution set and ``score:<name>`` for scores; after
    temperature scaling ``t_probs`` and ``score:t_<name>``.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, data in {"id": scored.id_data, **scored.ood}.items():
        arrays[f"{name}/labels"] = data.labels
        for mark, answers in {"": data, SCALED: data.scaled}.items():
            if answers is None:
                continue
            if answers.probs is not None:
                arrays[f"{name}/{mark}probs"] = answers.probs.astype(np.float32)
            for score, values in answers.scores.items():
                # A member of a .npz is a file in a zip archive: a slash in "p(x)/y" would become a folder.
                arrays[f"{name}/score:{mark}{score.replace('/', '|')}"] = values
    write_npz(path, arrays)


def _to_numpy(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()
