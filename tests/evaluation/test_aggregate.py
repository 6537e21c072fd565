"""Aggregation: what makes two runs the same experiment, and the arithmetic over them."""

from __future__ import annotations

import math

import pandas as pd

from uncertainty_est.evaluation.aggregate import RunTables, aggregate


def one(seed: int, value: float, **changes: object) -> RunTables:
    fixed = {"model": "m", "dataset": "d", "seed": seed, "output_folder": f"runs{seed}", "lr": 0.1, **changes}
    run = f"run{seed}"
    ood = pd.DataFrame([{"OOD dataset": "o", "Score": "s", "Metric": "AUROC", "Value": value, "Run": run}])
    clf = pd.DataFrame(
        [
            {"Score": "", "Metric": "Accuracy", "Value": value / 2, "Run": run},
            {"Score": "s", "Metric": "AURC", "Value": value / 3, "Run": run},
        ]
    )
    return RunTables(fixed, ood, clf)


def test_mean_and_standard_error_over_seeds() -> None:
    (entry,) = aggregate([one(1, 90.0), one(2, 96.0), one(3, 93.0)])
    assert entry["mean"] == {"Accuracy": 46.5, "s/AURC": 31.0, "o/s/AUROC": 93.0}
    assert math.isclose(entry["standard_error"]["o/s/AUROC"], 3.0 / math.sqrt(3))
    assert entry["values"]["o/s/AUROC"] == [90.0, 96.0, 93.0]
    assert entry["info"] == {
        "model": "m",
        "dataset": "d",
        "n": 3,
        "seeds": [1, 2, 3],
        "runs": ["run1", "run2", "run3"],
    }


def test_any_other_difference_makes_another_experiment() -> None:
    entries = aggregate([one(1, 90.0), one(2, 91.0, lr=0.2), one(3, 92.0, split_seed=4)])
    assert [entry["info"]["n"] for entry in entries] == [1, 1, 1]


def test_metrics_that_not_all_runs_have_are_left_out() -> None:
    with_more = one(2, 91.0)
    extra = with_more.ood.assign(**{"OOD dataset": "other"})
    more = RunTables(with_more.fixed, pd.concat([with_more.ood, extra]), with_more.clf)
    (entry,) = aggregate([one(1, 90.0), more])
    assert set(entry["mean"]) == {"Accuracy", "s/AURC", "o/s/AUROC"}


def test_a_method_without_classes() -> None:
    run = one(1, 90.0)
    (entry,) = aggregate([RunTables(run.fixed, run.ood, pd.DataFrame())])
    assert entry["mean"] == {"o/s/AUROC": 90.0}
    assert entry["standard_error"] == {"o/s/AUROC": None}
