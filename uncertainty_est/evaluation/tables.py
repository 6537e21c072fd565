"""Tidy tables from scored runs: one row a number, values in percent, the convention in the column names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from uncertainty_est.evaluation.scoring import Scored, ScoredRun
from uncertainty_est.metrics.calibration import classification_metrics, uniform_divergence
from uncertainty_est.metrics.confidence import ood_estimates
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.metrics.selective import scod_metrics, selective_metrics

# These are in nats; every other number is a share and shown in percent.
_IN_NATS = ("NLL", "Predictive entropy", "KL from uniform")
# Score of the rows that are about confidence itself, whatever scores a method has.
CONFIDENCE = "max p(y|x)"
# An input is predicted with confidence where a class gets more than this.
_CONFIDENT = 0.95
# Stands in the column of scores where a row is the mean of a quantity, which has a unit of its own.
_QUANTITY = "Mean"


@dataclass(frozen=True)
class RunInfo:
    """What a row says of the run it comes from.

    Attributes:
        model: name of the run's folder.
        model_type: class of the method.
        config: name of the model configuration.
        id_dataset: in-distribution data set that was scored.
        seed: of the run, or a text of those of an ensemble's members.
        run: path of the run below the folder that was searched.
        entries: values of ``--config-entries``, by the last part of their key.
    """

    model: str
    model_type: str
    config: str
    id_dataset: str
    seed: int | str
    run: str
    entries: Mapping[str, Any] = field(default_factory=dict)

    def row(self, middle: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
        """A table's row: what the original's tables said of a run, `middle`, the entries, then `ours`."""
        head = {"Model": self.model, "Model Type": self.model_type, "ID dataset": self.id_dataset}
        tail = {"Config": self.config, "Seed": self.seed, "Run": self.run}
        return {**head, **middle, **self.entries, **ours, **tail}


def all_rows(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables beneath one another; an empty table has no columns to agree on."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def percent(metric: str, value: float) -> float:
    """A metric as the tables show it."""
    return value if metric in _IN_NATS else 100.0 * value


def groups_present(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """Each group cut down to the OOD sets that were scored; groups without any are left out."""
    cut = {group: [name for name in members if name in names] for group, members in groups.items()}
    return {group: members for group, members in cut.items() if members}


def ood_table(
    info: RunInfo,
    scored: ScoredRun,
    groups: Mapping[str, Sequence[str]],
    *,
    calibration: bool = False,
    scod: bool = False,
    n_boot: int = 500,
) -> pd.DataFrame:
    """One row for each OOD set (and group mean), score and metric, with its 95 % confidence interval.

    A method with classes also has the mean confidence ``MMC`` on each OOD set and the share of confident predictions;
    with `scod` also the metrics of selective classification among the OOD set's inputs, for every score, without
    intervals.

    Columns: the original's seven, the config entries, then ``CI low``, ``CI high`` (same unit as ``Value``),
    ``Headline`` (the method's first score), ``Group`` (of an OOD set; ``mean`` for a group's own rows), ``n_id``,
    ``n_ood``, ``Config``, ``Seed``, ``Run``.
    """
    members = groups_present(groups, list(scored.ood))
    group_of = {name: group for group, names in members.items() for name in names}
    n_ood = {name: len(data.labels) for name, data in scored.ood.items()}
    n_ood |= {group: sum(n_ood[name] for name in names) for group, names in members.items()}
    n_id = len(scored.id_data.labels)

    def ours(name: str, low: float, high: float, headline: bool) -> dict[str, Any]:
        group = "mean" if name in members else group_of.get(name, "")
        return {
            "CI low": low,
            "CI high": high,
            "Headline": headline,
            "Group": group,
            "n_id": n_id,
            "n_ood": n_ood[name],
        }

    rows = []
    for i, (score, known) in enumerate(scored.id_data.scores.items()):
        unknown = {name: data.scores[score] for name, data in scored.ood.items()}
        if not unknown:
            continue
        estimates = ood_estimates(known, unknown, groups=members, n_boot=n_boot, seed=0)
        for name, metrics in estimates.items():
            for metric, estimate in metrics.items():
                value = percent(metric, estimate.value)
                middle = {"OOD dataset": name, "Score": score, "Metric": metric, "Value": value}
                low, high = percent(metric, estimate.low), percent(metric, estimate.high)
                rows.append(info.row(middle, ours(name, low, high, headline=i == 0)))
    if scod:
        for name, score, metric, value in _scod(scored, members):
            middle = {"OOD dataset": name, "Score": score, "Metric": metric, "Value": value}
            rows.append(info.row(middle, ours(name, float("nan"), float("nan"), headline=False)))
    for name, data in scored.ood.items():
        means = [(_QUANTITY, metric, values) for metric, values in data.quantities.items()]
        if data.probs is not None:
            means += [(CONFIDENCE, metric, values) for metric, values in confidences(data.probs).items()]
        if calibration and data.probs is not None:
            means.append(("OOD Calibration", "KL from uniform", uniform_divergence(data.probs)))
        for score, metric, values in means:
            mean, half = _mean_and_half_width(values)
            low, high = mean - half, mean + half
            if score == CONFIDENCE:
                low, high = max(low, 0.0), min(high, 100.0)
            middle = {"OOD dataset": name, "Score": score, "Metric": metric, "Value": mean}
            rows.append(info.row(middle, ours(name, low, high, headline=False)))
    return pd.DataFrame(rows)


def confidences(probs: np.ndarray) -> dict[str, np.ndarray]:
    """``MMC`` (maximum probability) and ``Confident share`` (whether it exceeds 0.95), ``[N]`` in percent.

    The tables tell their means, which are low where a method knows that it does not know. The share is no ``FPR95``,
    whose threshold is where 95 % of the ID set are accepted.

    References:
        Meinke and Hein, arXiv:1909.12180, section 5.

    Args:
        probs: ``[N, C]``.
    """
    largest = probs.max(axis=1)
    return {"MMC": 100 * largest, "Confident share": 100.0 * (largest > _CONFIDENT)}


def clf_table(info: RunInfo, scored: ScoredRun) -> pd.DataFrame:
    """One row for each classification and calibration metric, and mean quantity, of the ID test set.

    A method with classes also has rows of selective classification, for each score: it alone is in the column
    ``Score``, which is empty elsewhere.
    """
    data = scored.id_data
    numbers = [("", name, value) for name, value in _whole_set(data)]
    if data.probs is not None:
        numbers += _by_score(data, selective_metrics(_matrix(data), _errors(data)))
    return pd.DataFrame(
        info.row({"Metric": name, "Value": value}, {"Score": score, "n_id": len(data.labels)})
        for score, name, value in numbers
    )


def results_of(scored: ScoredRun, groups: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
    """The numbers of one run as a nested dictionary of plain values, percent as in the tables, without intervals.

    ``{"seed": …, "classification": {metric: value}, "ood": {set or group: {score: {metric: value}}}}``
    """
    ood: dict[str, dict[str, dict[str, float]]] = {}
    for name, data in scored.ood.items():
        ood[name] = {score: _metrics(scored.id_data, data, score) for score in scored.id_data.scores}
    for group, names in groups_present(groups, list(scored.ood)).items():
        ood[group] = {
            score: {metric: float(np.mean([ood[n][score][metric] for n in names])) for metric in metrics}
            for score, metrics in ood[names[0]].items()
        }
    for name, data in scored.ood.items():
        if data.quantities:
            ood[name][_QUANTITY] = {metric: float(values.mean()) for metric, values in data.quantities.items()}
    return {"seed": seed, "classification": dict(_whole_set(scored.id_data)), "ood": ood}


def _scod(scored: ScoredRun, groups: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str, float]]:
    """Name of an OOD set or group, score, metric and value; nothing of a method without classes."""
    known = scored.id_data
    if known.probs is None:
        return
    of_set = {
        name: scod_metrics(_matrix(known), _errors(known), np.stack([data.scores[score] for score in known.scores]))
        for name, data in scored.ood.items()
    }
    for name, members in {**{name: [name] for name in of_set}, **groups}.items():
        means = {metric: np.mean([of_set[m][metric] for m in members], axis=0) for metric in of_set[members[0]]}
        for score, metric, value in _by_score(known, means):
            yield name, score, f"SCOD {metric}", value


def _by_score(data: Scored, metrics: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, float]]:
    """Score, metric and value in percent, of metrics ``[S]``."""
    for i, score in enumerate(data.scores):
        for metric, values in metrics.items():
            yield score, metric, 100.0 * float(values[i])


def _matrix(data: Scored) -> np.ndarray:
    """All scores, ``[S, N]``."""
    return np.stack(list(data.scores.values()))


def _errors(data: Scored) -> np.ndarray:
    """Which predictions are wrong, ``[N]``."""
    assert data.probs is not None
    return data.probs.argmax(axis=1) != data.labels


def _whole_set(data: Scored) -> Iterator[tuple[str, float]]:
    """Numbers of a data set with known labels, as the tables show them."""
    if data.probs is not None:
        for name, value in classification_metrics(data.probs, data.labels).items():
            yield name, percent(name, value)
    for name, values in data.quantities.items():
        yield name, float(values.mean())


def _metrics(known: Scored, unknown: Scored, score: str) -> dict[str, float]:
    metrics = ood_metrics(known.scores[score], unknown.scores[score])
    return {name: percent(name, value) for name, value in metrics.items()}


def _mean_and_half_width(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its normal 95 % interval."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), 1.959964 * spread / len(values) ** 0.5
