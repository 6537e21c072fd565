"""Rows of selective classification: where they are, and that their numbers are those of the raw scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from uncertainty_est.evaluation.scoring import Scored, ScoredRun
from uncertainty_est.evaluation.tables import RunInfo, clf_table, ood_table
from uncertainty_est.metrics.selective import SCOD_METRICS, SELECTIVE_METRICS

INFO = RunInfo("run", "CEBaseline", "fc_ce_baseline", "data", 1, "run")


def answers(n: int, seed: int) -> Scored:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), n)
    scores = {"max p(y|x)": probs.max(axis=1), "noise": rng.integers(5, size=n).astype(float)}
    return Scored(rng.integers(3, size=n), probs, scores)


def run_of(n_ood: dict[str, int]) -> ScoredRun:
    return ScoredRun(answers(60, 0), {name: answers(n, i + 1) for i, (name, n) in enumerate(n_ood.items())})


def augrc(scores: np.ndarray, wrong: np.ndarray) -> float:
    r = wrong.mean()
    return r**2 / 2 + (1 - roc_auc_score(~wrong, scores)) * r * (1 - r)


def test_classification_tables_have_them_for_every_score() -> None:
    scored = run_of({})
    table = clf_table(INFO, scored)
    selective = table[table["Score"] != ""]
    assert list(selective["Score"]) == [s for s in scored.id_data.scores for _ in SELECTIVE_METRICS]
    assert set(selective["Metric"]) == set(SELECTIVE_METRICS)
    assert not set(table.loc[table["Score"] == "", "Metric"]) & set(SELECTIVE_METRICS)
    wrong = scored.id_data.probs.argmax(1) != scored.id_data.labels  # type: ignore[union-attr]
    value = selective.set_index(["Score", "Metric"])["Value"]
    for name, scores in scored.id_data.scores.items():
        assert value[name, "AUGRC"] == pytest.approx(100 * augrc(scores, wrong))


def test_scod_rows_are_there_when_asked_for_with_means_of_groups() -> None:
    scored = run_of({"near": 40, "far": 25})
    groups = {"both": ["near", "far"]}
    assert not ood_table(INFO, scored, groups, n_boot=5)["Metric"].str.startswith("SCOD").any()
    table = ood_table(INFO, scored, groups, scod=True, n_boot=5)
    rows = table[table["Metric"].str.startswith("SCOD")]
    assert len(rows) == 3 * len(scored.id_data.scores) * len(SCOD_METRICS)
    assert rows[["CI low", "CI high"]].isna().all(axis=None)
    assert not rows["Headline"].any()
    value = rows.set_index(["OOD dataset", "Score", "Metric"])["Value"]
    wrong = scored.id_data.probs.argmax(1) != scored.id_data.labels  # type: ignore[union-attr]
    for score, known in scored.id_data.scores.items():
        for name, data in scored.ood.items():
            both = np.r_[known, data.scores[score]], np.r_[wrong, np.ones(len(data.labels), bool)]
            assert value[name, score, "SCOD AUGRC"] == pytest.approx(100 * augrc(*both))
        mean = (value["near", score, "SCOD AURC"] + value["far", score, "SCOD AURC"]) / 2
        assert value["both", score, "SCOD AURC"] == pytest.approx(mean)


def test_without_classes_there_are_none() -> None:
    known, unknown = (Scored(np.zeros(5, int), None, {"p(x)": np.arange(5.0) + shift}) for shift in (0, 1))
    scored = ScoredRun(known, {"o": unknown})
    assert not len(clf_table(INFO, scored))
    assert not ood_table(INFO, scored, {}, scod=True, n_boot=5)["Metric"].str.startswith("SCOD").any()
