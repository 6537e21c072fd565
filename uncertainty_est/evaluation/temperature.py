"""A run's answers after temperature scaling, beside its own and from the same pass; the run stays as it is."""

from __future__ import annotations

import logging
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.evaluation.scoring import SCALED, Scored, ScoredRun
from uncertainty_est.models.base import Method
from uncertainty_est.models.temperature_scaling import collect_logits, fit_temperature, scalable

log = logging.getLogger(__name__)


def fit_scaling(name: str, method: Method, data: OODDataModule, device: torch.device | str) -> Tensor | None:
    """The temperature of a run, a float64 scalar, fitted to the whole of its own validation split.

    ``None``, and that is told in the log, for a method whose probabilities are no softmax of logits.

    Args:
        name: of the run, for the log.
        method: is moved to `device`.
        data: of the run, set up.
        device: where to compute.
    """
    method = method.to(device)
    loader = data.plain_loader("val", device=device)
    if not scalable(method, next(iter(loader))[0]):
        log.info("%s: %s has no softmax of logits to scale", name, type(method).__name__)
        return None
    temperature = fit_temperature(*collect_logits(method, loader))
    log.info("%s: temperature %.4f", name, temperature)
    return temperature


def scaled_run(scored: ScoredRun) -> ScoredRun | None:
    """What a run answers after scaling, under names with a prefix; ``None`` for one that was not scaled.

    Scores that no temperature touches (densities of features) are there as well, as they were.
    """
    if scored.id_data.scaled is None:
        return None

    def marked(data: Scored) -> Scored:
        return replace(data, scores={SCALED + name: values for name, values in data.scores.items()})

    ood = {name: marked(data.scaled) for name, data in scored.ood.items() if data.scaled is not None}
    return ScoredRun(marked(scored.id_data.scaled), ood, temperature=scored.temperature)


def mark_ood(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a scaled run's OOD table: none is a headline, and those about confidence have the prefix as well."""
    if not len(table):
        return table
    score = table["Score"].where(table["Score"].str.startswith(SCALED), SCALED + table["Score"])
    return table.assign(Score=score, Headline=False)


def mark_clf(table: pd.DataFrame, temperature: float | None) -> pd.DataFrame:
    """Rows of a scaled run's classification table under names with a prefix, and one for the temperature."""
    row = table.iloc[:1].assign(Metric="Temperature", Value=temperature)
    return pd.concat([row, table.assign(Metric=SCALED + table["Metric"])], ignore_index=True)
