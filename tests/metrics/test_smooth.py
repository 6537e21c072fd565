"""SmoothECE against its definition in plain numpy, closed forms, and published code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertainty_est.metrics.smooth import smooth_ece


def by_definition(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Sum of mirrored Gaussians, sums over a grid, bisection."""
    t = np.linspace(0, 1, 2001)
    images = np.concatenate([2 * m + sign * confidence for m in range(-4, 5) for sign in (1, -1)])
    residual = np.tile(correct - confidence, 18) / len(confidence)
    squares = np.square(t[:, None] - images)

    def excess(sigma: float) -> float:
        smoothed = np.exp(-squares / (2 * sigma**2)) @ residual / (sigma * np.sqrt(2 * np.pi))
        return float(np.trapezoid(np.abs(smoothed), t)) - sigma

    low, high = 1e-3, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("n", "low"), [(1, 0.3), (2, 0.0), (7, 0.3), (30, 0.9)])
def test_equals_the_definition(n: int, low: float) -> None:
    rng = np.random.default_rng(n)
    confidence = rng.uniform(low, 1, n)
    correct = rng.random(n) < confidence**2
    # The reference's sums over 2000 steps are good to about 1e-7.
    assert smooth_ece(confidence, correct) == pytest.approx(by_definition(confidence, correct), abs=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 200), st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_residuals_of_one_sign_only_are_not_cancelled_by_any_smoothing(
    n: int, low: float, correct: bool, seed: int
) -> None:
    confidence = np.random.default_rng(seed).uniform(low, 1, n)
    expected = np.abs(correct - confidence).mean()
    assert smooth_ece(confidence, np.full(n, correct)) == pytest.approx(expected, abs=1e-4 if expected < 1e-4 else 1e-9)


def test_nothing_is_rounded_to_a_grid() -> None:
    """A shift by far less than any grid's step changes the result by as much as it should, not by a step or nothing."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 0.5, 500)
    correct = rng.random(500) < 0.05
    correct[0] = False
    shifted = confidence + 1e-7 * (~correct)
    # Where all residuals near a point have one sign, smoothing leaves sums alone: here most are negative.
    change = smooth_ece(shifted, correct) - smooth_ece(confidence, correct)
    assert change == pytest.approx(1e-7 * (~correct).mean(), rel=0.05)


def test_agrees_with_published_code() -> None:
    """``relplot`` 1.0.3 with ``use_logit_scaling = False``, which rounds to a mesh of 200 points or more."""
    rng = np.random.default_rng(1000)
    confidence = rng.beta(5, 1, 1000)
    correct = rng.random(1000) < confidence**1.3
    assert smooth_ece(confidence, correct) == pytest.approx(0.05316546459486504, abs=5e-4)


def test_calibrated_predictions_and_the_order() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 20_000)
    correct = rng.random(20_000) < confidence
    value = smooth_ece(confidence, correct)
    assert 0.002 < value < 0.015  # of chance: about (variance / N)^(1/3)
    assert smooth_ece(confidence[::-1], correct[::-1]) == pytest.approx(value, abs=1e-12)
    assert smooth_ece(confidence, correct[::-1]) > 0.05


def test_small_values() -> None:
    assert smooth_ece([1.0, 1.0000001], [1, 1]) == 0
    assert smooth_ece([0.5, 0.5], [0, 1]) == pytest.approx(0, abs=1e-15)
    # One miss among 2000: a residual of 1 / 2000 that nothing cancels.
    assert smooth_ece(np.ones(2000), np.arange(2000) > 0) == pytest.approx(1 / 2000, rel=1e-9)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [([], [], r"N at least 1"), ([0.5], [1, 1], "got"), ([[0.5]], [[1]], "shape"), ([np.nan], [1], "NaN")],
)
def test_refused_input(confidence: list, correct: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth_ece(confidence, correct)
