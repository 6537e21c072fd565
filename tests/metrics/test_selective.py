"""Selective classification against loops over thresholds, identities, and TorchUncertainty's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from uncertainty_est.metrics.selective import SCOD_METRICS, SELECTIVE_METRICS, scod_metrics, selective_metrics

# Of TorchUncertainty 0.13.0, see test_agrees_with_torch_uncertainty.
GOLDEN = {
    "AURC": 0.148474079972065,
    "AUGRC": 0.10113095269353176,
    "Cov@5Risk": 0.16500000655651093,
    "Risk@80Cov": 0.240625,
}


def by_loops(scores: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """One score, one threshold after another."""
    n, points = len(scores), [(0, 0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        points.append((int(accepted.sum()), int(errors[accepted].sum())))
    steps = list(zip(points, points[1:], strict=False))
    best = sum(max(0, k - (n - errors.sum())) / k for k in range(1, n + 1)) / n
    aurc = sum((k - j) / n * e / k for (j, _), (k, e) in steps)
    return {
        "AURC": aurc,
        "E-AURC": aurc - best,
        "AUGRC": sum((k - j) / n * (d + e) / 2 / n for (j, d), (k, e) in steps),
        "Cov@5Risk": max([k / n for k, e in points[1:] if e * 100 <= k * 5], default=0.0),
        "Risk@80Cov": next(e / k for k, e in points[1:] if k * 10 >= n * 8),
    }


def case(seed: int, n: int, levels: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Three scores with many ties, and errors that the first score knows something of."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(3, n)).astype(np.float64)
    return scores, rng.random(n) < rate * (1 + (scores[0] < levels / 2))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.3, 1.0]))
def test_equals_the_loops(seed: int, n: int, levels: int, rate: float) -> None:
    scores, errors = case(seed, n, levels, rate)
    metrics = selective_metrics(scores, errors)
    assert tuple(metrics) == SELECTIVE_METRICS
    for i, score in enumerate(scores):
        expected = by_loops(score, errors)
        assert {name: values[i] for name, values in metrics.items()} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 20))
def test_identities_and_invariances(seed: int, n: int, levels: int) -> None:
    scores, errors = case(seed, n, levels, 0.3)
    errors[:2] = True, False
    metrics = selective_metrics(scores, errors)
    r = errors.mean()
    auroc = np.array([roc_auc_score(~errors, score) for score in scores])
    np.testing.assert_allclose(metrics["AUGRC"], r**2 / 2 + (1 - auroc) * r * (1 - r), atol=1e-12)
    assert (metrics["E-AURC"] >= 0).all()
    shuffle = np.random.default_rng(seed).permutation(n)
    for changed in (
        selective_metrics(scores[:, shuffle], errors[shuffle]),
        selective_metrics(np.exp(scores / 10) - 7, errors),
    ):
        for name, values in metrics.items():
            np.testing.assert_allclose(changed[name], values, atol=1e-13)


def test_closed_forms() -> None:
    errors = np.arange(100) < 20
    order = np.arange(100.0)
    metrics = selective_metrics([order, -order, np.zeros(100)], errors)
    # All right predictions first, all wrong ones first, all at once.
    best = sum(k / (80 + k) for k in range(1, 21)) / 100
    worst = (20 + sum(20 / k for k in range(21, 101))) / 100
    np.testing.assert_allclose(metrics["AURC"], [best, worst, 0.2], atol=1e-15)
    np.testing.assert_allclose(metrics["E-AURC"], [0, worst - best, 0.2 - best], atol=1e-15)
    np.testing.assert_allclose(metrics["AUGRC"], [0.02, 0.18, 0.1], atol=1e-15)
    np.testing.assert_allclose(metrics["Cov@5Risk"], [0.84, 0, 0], atol=1e-15)  # 4 errors in 84 are 4.8 %
    np.testing.assert_allclose(metrics["Risk@80Cov"], [0, 0.25, 0.2], atol=1e-15)


def test_five_and_eighty_percent_are_met_exactly() -> None:
    errors = np.zeros(20, dtype=bool)
    errors[-1] = True
    metrics = selective_metrics([-np.arange(20.0)], errors)
    assert metrics["Cov@5Risk"] == 1  # 1 of 20, though 1 / 20 > 0.05 in some roundings
    errors = np.arange(5) == 3
    assert selective_metrics([-np.arange(5.0)], errors)["Risk@80Cov"] == 0.25


def test_agrees_with_torch_uncertainty() -> None:
    """Its areas are trapezoids, summed in float32, from coverage 1 / N on, divided by 1 - 1 / N; no ties here."""
    n = 400
    rng = np.random.default_rng(7)
    confidence = rng.permutation(np.linspace(0.5, 1, n, endpoint=False) + 1e-4)
    errors = rng.random(n) < 1.3 * (1 - confidence)
    ours = {name: values[0] for name, values in selective_metrics(confidence[None], errors).items()}
    first, last = float(errors[confidence.argmax()]), errors.mean()
    assert (n * ours["AURC"] - (first + last) / 2) / (n - 1) == pytest.approx(GOLDEN["AURC"], abs=1e-8)
    assert (ours["AUGRC"] - first / (2 * n**2)) * n / (n - 1) == pytest.approx(GOLDEN["AUGRC"], abs=1e-8)
    assert ours["Cov@5Risk"] == pytest.approx(GOLDEN["Cov@5Risk"], abs=1e-7)
    assert ours["Risk@80Cov"] == pytest.approx(GOLDEN["Risk@80Cov"], abs=1e-7)


def test_scod_counts_every_ood_input_as_an_error() -> None:
    scores, errors = case(1, 50, 12, 0.2)
    unknown = np.random.default_rng(2).integers(12, size=(3, 30)) - 4.0
    metrics = scod_metrics(scores, errors, unknown)
    assert tuple(metrics) == SCOD_METRICS
    for i in range(3):
        expected = by_loops(np.r_[scores[i], unknown[i]], np.r_[errors, np.ones(30, bool)])
        assert {name: values[i] for name, values in metrics.items()} == pytest.approx(
            {name: expected[name] for name in SCOD_METRICS}, abs=1e-12
        )
    # Separated, without errors on data: all of the data are covered at no risk.
    separated = scod_metrics([np.full(60, 1.0)], np.zeros(60, bool), [np.zeros(40)])
    assert {name: float(v[0]) for name, v in separated.items()} == pytest.approx(
        {"AURC": 0.4 * 0.4, "AUGRC": 0.4**2 / 2, "Cov@5Risk": 0.6, "Risk@80Cov": 0.4}
    )


def test_inputs_are_left_alone() -> None:
    scores, errors = case(3, 20, 5, 0.3)
    copies = scores.copy(), errors.copy()
    scod_metrics(scores, errors, scores)
    np.testing.assert_array_equal(scores, copies[0])
    np.testing.assert_array_equal(errors, copies[1])


@pytest.mark.parametrize(
    ("scores", "errors", "message"),
    [
        ([0.1, 0.2], [True, False], r"scores must have shape \[S, N\]"),
        (np.empty((2, 0)), [], r"scores must have shape \[S, N\]"),
        ([[0.1, 0.2]], [True], r"errors must have shape \(2,\) to fit scores, got \(1,\)"),
        ([[0.1, 0.2]], [1, 0], "errors must be booleans, got int64"),
        ([[0.1, np.nan]], [True, False], "scores must not be NaN"),
    ],
)
def test_refused_input(scores: list, errors: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_metrics(scores, errors)


def test_refused_ood_scores() -> None:
    with pytest.raises(ValueError, match="must fit"):
        scod_metrics([[0.1]], np.array([True]), [[0.1], [0.2]])
