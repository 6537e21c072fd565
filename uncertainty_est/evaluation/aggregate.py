"""Means and standard errors over runs that differ in nothing but their seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

# What may differ between two runs of one experiment: the seed, and where a run reads from, writes to and logs.
_NOT_THE_EXPERIMENT = (
    "seed",
    "output_folder",
    "data_root",
    "init_from",
    "logger",
    "eval_batch_size",
    "resume",
    "checkpoint_minutes",
)


@dataclass(frozen=True)
class RunTables:
    """All numbers of one run: its resolved configuration and its two tables."""

    fixed: Mapping[str, Any]
    ood: pd.DataFrame
    clf: pd.DataFrame


def aggregate(runs: Sequence[RunTables]) -> list[dict[str, Any]]:
    """One entry for each experiment, a set of runs that differ only in seed.

    Each entry holds ``info`` (model, data set, seeds, run folders, number of runs), and by flat metric name
    (``Accuracy``, ``<score>/<metric>``, ``<OOD set>/<score>/<metric>``) the ``mean``, the ``standard_error``
    (``std(ddof=1)/sqrt(runs)``, ``null`` for a single run) and the ``values`` of all runs, in the order of
    ``info.runs``.
    """
    return [_entry(members) for members in experiments(runs)]


def experiments(runs: Sequence[RunTables]) -> list[list[RunTables]]:
    """Runs that differ only in seed side by side, in the order of their first ones."""
    groups: dict[str, list[RunTables]] = {}
    for run in runs:
        groups.setdefault(experiment_of(run.fixed), []).append(run)
    return list(groups.values())


def experiment_of(fixed: Mapping[str, Any]) -> str:
    """A text that is equal for runs of one experiment: a resolved configuration without seeds and paths."""
    kept = {key: value for key, value in fixed.items() if key not in _NOT_THE_EXPERIMENT}
    return json.dumps(kept, sort_keys=True, default=str)


def _entry(members: Sequence[RunTables]) -> dict[str, Any]:
    flat = [_flat(run) for run in members]
    names = [name for name in flat[0] if all(name in numbers for numbers in flat)]
    values = {name: [numbers[name] for numbers in flat] for name in names}
    n = len(members)
    fixed = members[0].fixed
    return {
        "info": {
            "model": fixed.get("model"),
            "dataset": fixed.get("dataset"),
            "n": n,
            "seeds": [run.fixed.get("seed") for run in members],
            "runs": [_run_name(run) for run in members],
        },
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "standard_error": {
            name: float(np.std(v, ddof=1) / np.sqrt(n)) if n > 1 else None for name, v in values.items()
        },
        "values": values,
    }


def _flat(run: RunTables) -> dict[str, float]:
    numbers: dict[str, float] = {}
    if len(run.clf):
        names = (run.clf["Score"] + "/").where(run.clf["Score"] != "", "") + run.clf["Metric"]
        numbers |= dict(zip(names, run.clf["Value"], strict=True))
    if len(run.ood):
        names = run.ood["OOD dataset"] + "/" + run.ood["Score"] + "/" + run.ood["Metric"]
        numbers |= dict(zip(names, run.ood["Value"], strict=True))
    return numbers


def _run_name(run: RunTables) -> str:
    table = run.ood if len(run.ood) else run.clf
    return str(table["Run"].iloc[0]) if len(table) else ""
