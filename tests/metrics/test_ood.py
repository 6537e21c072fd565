"""OOD-detection metrics against their definitions, scikit-learn, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from uncertainty_est.metrics.ood import OOD_METRICS, ood_metrics, rank_scores, roc_curve

# A coarse grid, so that ties within and between the sets are the rule.
scores = arrays(np.float64, st.integers(1, 40), elements=st.integers(-6, 6).map(float))
checked = settings(max_examples=150)


def naive(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    """The definitions, one threshold at a time."""
    n, m = len(id_scores), len(ood_scores)
    wins = (id_scores[:, None] > ood_scores).sum() + 0.5 * (id_scores[:, None] == ood_scores).sum()
    threshold = np.sort(id_scores)[::-1][math.ceil(19 * n / 20) - 1]
    thresholds = [-np.inf, np.inf, *id_scores, *ood_scores]

    def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
        total, recall_before = 0.0, 0.0
        for t in np.unique(np.concatenate([positive, negative]))[::-1]:
            true, false = (positive >= t).sum(), (negative >= t).sum()
            recall = true / len(positive)
            total += (recall - recall_before) * true / (true + false)
            recall_before = recall
        return total

    return {
        "AUROC": wins / (n * m),
        "AUPR-IN": average_precision(id_scores, ood_scores),
        "AUPR-OUT": average_precision(-ood_scores, -id_scores),
        "FPR95": (ood_scores >= threshold).mean(),
        "Detection error": min(0.5 * (id_scores < t).mean() + 0.5 * (ood_scores >= t).mean() for t in thresholds),
    }


@checked
@given(scores, scores)
def test_ranks_count_smaller_and_equal_scores(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    # Infinities and both zeros among them.
    a, b = (np.sort(np.where(s == 6, np.inf, s / np.where(s == 0, -1, 1))) for s in (id_scores, ood_scores))
    ranks = rank_scores(a, b)
    assert ranks.id_below_id.tolist() == [(a < t).sum() for t in a]
    assert ranks.ood_below_id.tolist() == [(b < t).sum() for t in a]
    assert ranks.ood_upto_id.tolist() == [(b <= t).sum() for t in a]
    assert ranks.ood_upto_ood.tolist() == [(b <= t).sum() for t in b]
    assert ranks.id_below_ood.tolist() == [(a < t).sum() for t in b]
    assert ranks.id_upto_ood.tolist() == [(a <= t).sum() for t in b]


def test_golden_values() -> None:
    assert ood_metrics([0.9, 0.8, 0.7, 0.6], [0.75, 0.5, 0.4]) == pytest.approx(
        {
            "AUROC": 0.8333333333333334,
            "AUPR-IN": 0.8875,
            "AUPR-OUT": 0.8666666666666667,
            "FPR95": 1 / 3,
            "Detection error": 1 / 6,
        },
        abs=1e-15,
    )


def test_constant_scores_are_chance() -> None:
    assert ood_metrics(np.full(4, 2.5), np.full(3, 2.5)) == pytest.approx(
        {"AUROC": 0.5, "AUPR-IN": 4 / 7, "AUPR-OUT": 3 / 7, "FPR95": 1.0, "Detection error": 0.5}, abs=1e-15
    )


def test_separated_scores() -> None:
    perfect = {"AUROC": 1.0, "AUPR-IN": 1.0, "AUPR-OUT": 1.0, "FPR95": 0.0, "Detection error": 0.0}
    assert ood_metrics([3.0, 4.0, np.inf], [-np.inf, 1.0]) == perfect
    worst = ood_metrics([1.0, 2.0], [3.0, 4.0])
    assert (worst["AUROC"], worst["FPR95"], worst["Detection error"]) == (0.0, 1.0, 0.5)


def test_every_metric_is_returned_in_order() -> None:
    metrics = ood_metrics([1.0], [0.0])
    assert tuple(metrics) == OOD_METRICS
    assert all(type(value) is float for value in metrics.values())


@checked
@given(scores, scores)
def test_equal_to_the_definitions(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    assert ood_metrics(id_scores, ood_scores) == pytest.approx(naive(id_scores, ood_scores), abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 12], ids=["many ties", "no ties"])
@pytest.mark.parametrize(("n", "m"), [(500, 500), (1000, 77), (60, 2000)])
def test_equal_to_scikit_learn(n: int, m: int, decimals: int) -> None:
    rng = np.random.default_rng(n)
    id_scores, ood_scores = rng.normal(1, 1, n).round(decimals), rng.normal(0, 2, m).round(decimals)
    is_id = np.concatenate([np.ones(n), np.zeros(m)])
    pooled = np.concatenate([id_scores, ood_scores])
    metrics = ood_metrics(id_scores, ood_scores)
    assert metrics["AUROC"] == pytest.approx(roc_auc_score(is_id, pooled), abs=1e-12)
    assert metrics["AUPR-IN"] == pytest.approx(average_precision_score(is_id, pooled), abs=1e-12)
    assert metrics["AUPR-OUT"] == pytest.approx(average_precision_score(1 - is_id, -pooled), abs=1e-12)


@checked
@given(scores, scores, st.floats(0.01, 100), st.floats(-100, 100))
def test_increasing_transforms_change_nothing(
    id_scores: np.ndarray, ood_scores: np.ndarray, slope: float, offset: float
) -> None:
    metrics = ood_metrics(id_scores, ood_scores)
    assert ood_metrics(np.exp(id_scores), np.exp(ood_scores)) == metrics
    assert ood_metrics(slope * id_scores + offset, slope * ood_scores + offset) == metrics


@checked
@given(scores, scores)
def test_swap_symmetry(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    metrics = ood_metrics(id_scores, ood_scores)
    assert ood_metrics(ood_scores, id_scores)["AUROC"] == pytest.approx(1 - metrics["AUROC"], abs=1e-15)
    mirrored = ood_metrics(-ood_scores, -id_scores)
    assert mirrored["AUROC"] == pytest.approx(metrics["AUROC"], abs=1e-15)
    assert mirrored["AUPR-IN"] == pytest.approx(metrics["AUPR-OUT"], abs=1e-14)
    assert mirrored["AUPR-OUT"] == pytest.approx(metrics["AUPR-IN"], abs=1e-14)


@checked
@given(scores, scores)
def test_bounds(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    metrics = ood_metrics(id_scores, ood_scores)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics["Detection error"] <= 0.5
    assert metrics["Detection error"] <= 0.025 + 0.5 * metrics["FPR95"] + 1e-12


@pytest.mark.parametrize(("n", "accepted"), [(1, 1), (19, 19), (20, 19), (21, 20), (40, 38), (100, 95)])
def test_fpr95_takes_the_ceiling(n: int, accepted: int) -> None:
    """OOD score k + 1/2 lies between ID scores k and k + 1, so FPR95 tells where the threshold is."""
    id_scores, ood_scores = np.arange(n, dtype=float), np.arange(n) + 0.5
    assert ood_metrics(id_scores, ood_scores)["FPR95"] == accepted / n


def test_order_dtype_and_input_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(size=50).astype(np.float32), rng.normal(size=30).astype(np.float32)
    before = id_scores.copy(), ood_scores.copy()
    metrics = ood_metrics(id_scores, ood_scores)
    np.testing.assert_array_equal(id_scores, before[0])
    np.testing.assert_array_equal(ood_scores, before[1])
    assert ood_metrics(rng.permutation(id_scores), rng.permutation(ood_scores)) == metrics


def test_sets_are_not_cut_to_the_same_length() -> None:
    """AUPR depends on n : m, which a cut to the shorter set would hide."""
    assert ood_metrics([1.0, 1.0, 1.0], [1.0])["AUPR-IN"] == 0.75


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "id_scores must hold at least one score"),
        ([1.0], [], "ood_scores must hold at least one score"),
        ([1.0, np.nan, 2.0], [1.0], "id_scores must not be NaN, got NaN in 1 of 3"),
        ([1.0], [np.nan, np.nan], "ood_scores must not be NaN, got NaN in 2 of 2"),
        ([[1.0], [2.0]], [1.0], r"id_scores must be one-dimensional, got shape \(2, 1\)"),
    ],
)
def test_refused_input(id_scores: list, ood_scores: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ood_metrics(id_scores, ood_scores)
    with pytest.raises(ValueError, match=message):
        roc_curve(id_scores, ood_scores)


@checked
@given(scores, scores)
def test_area_under_the_roc_curve_is_the_auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    fpr, tpr = roc_curve(id_scores, ood_scores)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    area = (np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()
    assert area == pytest.approx(ood_metrics(id_scores, ood_scores)["AUROC"], abs=1e-12)


def test_long_roc_curves_are_thinned() -> None:
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, 20_000), rng.normal(0, 1, 20_000)
    fpr, tpr = roc_curve(id_scores, ood_scores)
    assert fpr.shape == tpr.shape == (2000,)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    area = (np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()
    assert area == pytest.approx(ood_metrics(id_scores, ood_scores)["AUROC"], abs=1e-4)
