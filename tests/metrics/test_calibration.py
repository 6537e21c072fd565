"""Classification and calibration metrics: golden values, scikit-learn, torchmetrics, simulations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from uncertainty_est.metrics.calibration import classification_metrics, reliability_bins, uniform_divergence
from uncertainty_est.metrics.smooth import smooth_ece

KEYS = [
    "Accuracy",
    "NLL",
    "Brier",
    "Brier uncertainty",
    "Brier resolution",
    "Brier reliability",
    "Brier (via decomposition)",
    "ECE",
    "MCE",
    "Adaptive ECE",
    "SmECE",
    "Predictive entropy",
]
A, B, C = (0.7, 0.2, 0.1), (0.2, 0.7, 0.1), (0.1, 0.3, 0.6)
PROBS = np.array([A, (0.4, 0.5, 0.1), B, C, (0.6, 0.3, 0.1), (1, 0, 0)])
LABELS = np.array([0, 0, 1, 2, 1, 0])


def random_predictions(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(n_classes, 0.4), n), rng.integers(n_classes, size=n)


def test_golden_values() -> None:
    metrics = classification_metrics(PROBS, LABELS)
    assert list(metrics) == KEYS
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx(
        {
            "Accuracy": 4 / 6,
            "NLL": -np.log([0.7, 0.4, 0.7, 0.6, 0.3, 1.0]).mean(),
            "Brier": 0.33666666666666667,
            "Brier uncertainty": 0.6111111111111112,
            "Brier resolution": 0.2222222222222222,
            "Brier reliability": 0.11444444444444444,
            "Brier (via decomposition)": 0.5033333333333333,
            "ECE": 0.21666666666666667,
            "MCE": 0.5,
            "Adaptive ECE": 0.21666666666666667,  # bins 0.5 | 0.6, 0.6 | 0.7, 0.7 | 1: ties stay together
            "SmECE": smooth_ece([0.7, 0.5, 0.7, 0.6, 0.6, 1.0], [1, 0, 1, 1, 0, 1]),
            "Predictive entropy": entropy(PROBS.T).mean(),
        },
        abs=1e-14,
    )


def test_decomposition_is_exact_where_predictions_are_constant_within_a_class() -> None:
    metrics = classification_metrics([A, A, B, C, B, A], [0, 1, 1, 2, 0, 0])
    assert metrics["Brier"] == pytest.approx(0.4933333333333333, abs=1e-14)
    assert metrics["Brier (via decomposition)"] == pytest.approx(metrics["Brier"], abs=1e-14)


@settings(max_examples=100)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_decomposition_is_exact_for_any_such_predictions(n_classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    by_class = rng.dirichlet(np.ones(n_classes), n_classes)
    np.fill_diagonal(by_class, 0)
    np.fill_diagonal(by_class, by_class.max(axis=1) + 0.1)  # row k predicts class k
    by_class /= by_class.sum(axis=1, keepdims=True)
    metrics = classification_metrics(by_class[rng.integers(n_classes, size=n)], rng.integers(n_classes, size=n))
    assert metrics["Brier (via decomposition)"] == pytest.approx(metrics["Brier"], abs=1e-12)


def test_perfect_predictions() -> None:
    metrics = classification_metrics(np.eye(3), np.arange(3))
    zero = ["NLL", "Brier", "Brier reliability", "Brier (via decomposition)", "ECE", "MCE", "Adaptive ECE", "SmECE"]
    assert metrics["Accuracy"] == 1
    assert {name: metrics[name] for name in zero} == pytest.approx(dict.fromkeys(zero, 0.0), abs=1e-15)


def test_wrong_predictions_with_confidence_one_count() -> None:
    metrics = classification_metrics([[1, 0], [1, 0], [0, 1], [0.4, 0.6]], [1, 0, 0, 1])
    # Bin of 1.0: accuracy 1/3, confidence 1, weight 3/4. Bin of 0.6: accuracy 1, confidence 0.6, weight 1/4.
    assert metrics["ECE"] == pytest.approx(0.75 * 2 / 3 + 0.25 * 0.4, abs=1e-14)
    assert metrics["MCE"] == pytest.approx(2 / 3, abs=1e-14)
    assert metrics["NLL"] == pytest.approx(-(2 * np.log(1e-12) + np.log(0.6)) / 4, abs=1e-12)
    assert metrics["Brier"] == pytest.approx((2 + 0 + 2 + 2 * 0.4**2) / 4, abs=1e-14)


@pytest.mark.parametrize(("n", "n_classes"), [(1000, 10), (37, 3), (5000, 2)])
def test_nll_equals_log_loss(n: int, n_classes: int) -> None:
    probs, labels = random_predictions(n, n_classes, seed=n)
    probs = 0.99 * probs + 0.01 / n_classes  # scikit-learn clips elsewhere
    expected = log_loss(labels, probs, labels=np.arange(n_classes))
    assert classification_metrics(probs, labels)["NLL"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "n_classes"), [(1000, 10), (37, 3), (5000, 2)])
def test_calibration_errors_equal_torchmetrics(n: int, n_classes: int) -> None:
    probs, labels = random_predictions(n, n_classes, seed=n + 1)
    # Away from 1, since torchmetrics gives confidences of exactly 1 a sixteenth bin of their own.
    probs = 0.999 * probs + 0.001 / n_classes
    metrics = classification_metrics(probs, labels)
    for name, order in (("ECE", "l1"), ("MCE", "max")):
        expected = multiclass_calibration_error(
            torch.as_tensor(probs), torch.as_tensor(labels), n_classes, n_bins=15, norm=order
        )
        assert metrics[name] == pytest.approx(expected.item(), abs=1e-5)  # it sums in float32


def test_calibrated_predictions_have_small_errors() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), 100_000)
    labels = (rng.random(100_000)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    metrics = classification_metrics(probs, labels)
    assert metrics["ECE"] < 0.01
    assert metrics["Adaptive ECE"] < 0.01
    assert metrics["SmECE"] < 0.01
    assert metrics["Brier"] == pytest.approx((1 - (probs**2).sum(axis=1)).mean(), abs=0.005)


def test_adaptive_bins_have_equal_mass_where_there_are_no_ties() -> None:
    probs, labels = random_predictions(1000, 5, seed=3)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    order = np.argsort(confidence)
    # Bin b ends at the score of rank ceil(b N / 15); the ends written out by hand for N = 1000.
    ends = [67, 134, 200, 267, 334, 400, 467, 534, 600, 667, 734, 800, 867, 934]
    bins = np.split(order, ends)
    expected = sum(abs(correct[b].sum() - confidence[b].sum()) for b in bins) / 1000
    assert classification_metrics(probs, labels)["Adaptive ECE"] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100)
@given(st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_order_does_not_matter(n: int, seed: int) -> None:
    """In particular not to the adaptive bins, whose edges fall among equal confidences here."""
    rng = np.random.default_rng(seed)
    probs, labels = np.array([A, B, C, (1.0, 0, 0)])[rng.integers(4, size=n)], rng.integers(3, size=n)
    shuffle = rng.permutation(n)
    metrics = classification_metrics(probs, labels)
    assert classification_metrics(probs[shuffle], labels[shuffle]) == pytest.approx(metrics, abs=1e-13)


def test_reliability_bins() -> None:
    bins = reliability_bins(PROBS, LABELS, n_bins=10)
    np.testing.assert_allclose(bins.edges, np.arange(11) / 10, atol=1e-15)
    # Bins are closed on the right: 0.5 belongs to (0.4, 0.5]. 1.0 is in the last one.
    np.testing.assert_array_equal(bins.counts, [0, 0, 0, 0, 1, 2, 2, 0, 0, 1])
    nan = np.nan
    np.testing.assert_allclose(bins.accuracy, [nan, nan, nan, nan, 0, 0.5, 1, nan, nan, 1])
    np.testing.assert_allclose(bins.confidence, [nan, nan, nan, nan, 0.5, 0.6, 0.7, nan, nan, 1])


def test_reliability_bins_give_the_ece() -> None:
    probs, labels = random_predictions(500, 4, seed=5)
    bins = reliability_bins(probs, labels)
    assert bins.counts.shape == (15,)
    assert bins.counts.sum() == 500
    gaps = np.abs(bins.accuracy - bins.confidence)
    metrics = classification_metrics(probs, labels)
    assert np.nansum(bins.counts * gaps) / 500 == pytest.approx(metrics["ECE"], abs=1e-14)
    assert np.nanmax(gaps) == pytest.approx(metrics["MCE"], abs=1e-14)


def test_float32_predictions_of_a_saturated_network() -> None:
    """Rounding may put a confidence slightly above 1: it still belongs to the last bin."""
    probs = np.array([[1.0000001, 0.0], [1.0, 0.0]], dtype=np.float32)
    bins = reliability_bins(probs, [0, 0])
    assert bins.counts[-1] == 2
    assert classification_metrics(probs, [0, 0])["ECE"] == pytest.approx(0, abs=1e-6)


def test_uniform_divergence() -> None:
    assert uniform_divergence(np.full((5, 4), 0.25)) == pytest.approx(np.zeros(5), abs=1e-7)
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    expected = (np.log(1 / 3) - np.log(p)).mean(axis=1)  # KL(U || p) = sum_c (1/3) (log 1/3 - log p_c)
    assert uniform_divergence(p) == pytest.approx(expected, abs=1e-6)
    one_hot = -np.log(2) - (np.log(1 + 1e-8) + np.log(1e-8)) / 2
    assert uniform_divergence(np.array([[1.0, 0.0]])) == pytest.approx([one_hot], abs=1e-14)


def test_inputs_are_left_alone() -> None:
    probs, labels = PROBS.copy(), LABELS.copy()
    classification_metrics(probs, labels), reliability_bins(probs, labels), uniform_divergence(probs)
    np.testing.assert_array_equal(probs, PROBS)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([0.5, 0.5], [0], r"probs must have shape \[N, C\]"),
        (np.empty((0, 3)), [], r"probs must have shape \[N, C\]"),
        ([[0.5, 0.4]], [0], "row 0 has minimum 0.4 and sum 0.9"),
        ([[0.5, 0.5], [np.nan, 0.5]], [0, 0], "row 1 has minimum nan and sum nan"),
        ([[1.5, -0.5]], [0], "row 0 has minimum -0.5 and sum 1"),
        ([[0.5, 0.5]], [0, 1], r"labels must have shape \(1,\) to fit probs, got \(2,\)"),
        ([[0.5, 0.5]], [[0]], r"labels must have shape \(1,\) to fit probs, got \(1, 1\)"),
        ([[0.5, 0.5]], [0.0], "labels must be integers, got float64"),
        ([[0.5, 0.5]], [2], r"labels must lie in \[0, 2\), got values from 2 to 2"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, -1], r"labels must lie in \[0, 2\), got values from -1 to 0"),
    ],
)
def test_refused_input(probs: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(probs, labels)
    with pytest.raises(ValueError, match=message):
        reliability_bins(probs, labels)


def test_refused_probabilities_and_bins() -> None:
    with pytest.raises(ValueError, match="rows that sum to 1"):
        uniform_divergence([[0.5, 0.4]])
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        reliability_bins(PROBS, LABELS, n_bins=0)


def test_rounded_probabilities_pass() -> None:
    """Rows of a softmax in float16 sum to 1 only roughly."""
    logits = 3 * torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    exact, rounded = logits.double().softmax(dim=1).numpy(), logits.softmax(dim=1).half().numpy()
    assert np.abs(rounded.astype(float).sum(axis=1) - 1).max() > 1e-4
    labels = np.arange(2000, dtype=np.uint8) % 100
    expected = classification_metrics(exact, labels)["Brier"]
    assert classification_metrics(rounded, labels)["Brier"] == pytest.approx(expected, abs=1e-3)
