"""How good class probabilities are: accuracy, proper scoring rules, calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from uncertainty_est.metrics.smooth import smooth_ece

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

N_BINS = 15
_SUM_TOLERANCE = 1e-3  # probabilities may have been float16


@dataclass(frozen=True)
class ReliabilityBins:
    """Confidence and accuracy in B bins of equal width, ``(edge, next edge]``; the first also holds 0.

    Attributes:
        edges: ``[B + 1]``, from 0 to 1.
        counts: ``[B]`` number of predictions.
        accuracy: ``[B]`` share of right predictions, NaN in an empty bin.
        confidence: ``[B]`` mean probability of the predicted class, NaN in an empty bin.
    """

    edges: FloatArray
    counts: IntArray
    accuracy: FloatArray
    confidence: FloatArray


def classification_metrics(probs: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Metrics of class probabilities p with labels y; the predicted class is the first with the largest p.

    - ``Accuracy``: share of right predictions.
    - ``NLL = mean -log max(p_y, 1e-12)``.
    - ``Brier = mean sum_c (p_c - 1[y = c])^2``, in [0, 2].
    - Murphy's decomposition by predicted class k, with n_k predictions, label frequencies d_k among them and
      label frequencies q overall: ``Brier uncertainty = sum_c q_c (1 - q_c)``,
      ``Brier resolution = sum_k n_k / N |d_k - q|^2``, ``Brier reliability = mean |d_k - p|^2``.
      ``Brier (via decomposition) = reliability - resolution + uncertainty`` is the Brier score if p is the
      same for all predictions of a class, and an approximation otherwise.
    - ``ECE = sum_b n_b / N |accuracy_b - confidence_b|`` over 15 bins of equal width, see
      :func:`reliability_bins`; ``MCE`` is the largest term without its weight.
    - ``Adaptive ECE``: the ECE over 15 bins of equal mass. Equal confidences always share a bin.
    - ``SmECE``: without bins, see :func:`~uncertainty_est.metrics.smooth.smooth_ece`.
    - ``Predictive entropy = mean -sum_c p_c log p_c``, in [0, log C]: not good or bad, but to be compared with the NLL.

    Args:
        probs: ``[N, C]``, rows sum to 1 within 1e-3.
        labels: ``[N]`` integers in [0, C).

    Raises:
        ValueError: shapes, probabilities or labels that do not fit.

    References:
        Murphy, J. Applied Meteorology 12 (1973), 595-600; Naeini et al., AAAI 2015 (ECE, MCE);
        Nguyen & O'Connor, arXiv 1508.05154 (equal mass).
    """
    p, y = _checked(probs, labels)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    n = len(y)
    error = p.copy()
    error[np.arange(n), y] -= 1
    counts, accuracy, mean_confidence = _by_bin(confidence, correct, _equal_width(confidence, N_BINS), N_BINS)
    occupied = counts > 0
    gaps = np.abs(accuracy - mean_confidence)[occupied]
    return {
        "Accuracy": float(correct.mean()),
        "NLL": float(-np.log(np.maximum(p[np.arange(n), y], 1e-12)).mean()),
        "Brier": float(np.einsum("nc,nc->", error, error) / n),
        **_brier_decomposition(p, y),
        "ECE": float(counts[occupied] @ gaps / n),
        "MCE": float(gaps.max()),
        "Adaptive ECE": _adaptive_ece(confidence, correct),
        "SmECE": smooth_ece(confidence, correct),
        "Predictive entropy": float(entr(p).sum(axis=1).mean()),
    }


def reliability_bins(probs: ArrayLike, labels: ArrayLike, n_bins: int = N_BINS) -> ReliabilityBins:
    """Accuracy against confidence, bin by bin.

    A confidence of exactly 1 is in the last bin. (Bins made by ``digitize`` on the upper edges lose it, and
    with it most predictions of a saturated network.)

    Args:
        probs: ``[N, C]``, rows sum to 1 within 1e-3.
        labels: ``[N]`` integers in [0, C).
        n_bins: number B of bins.

    Raises:
        ValueError: shapes, probabilities or labels that do not fit, or no bins.

    References:
        Guo et al., arXiv 1706.04599, section 2.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    p, y = _checked(probs, labels)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    bins = _by_bin(confidence, correct, _equal_width(confidence, n_bins), n_bins)
    return ReliabilityBins(np.linspace(0, 1, n_bins + 1), *bins)


def uniform_divergence(probs: ArrayLike) -> FloatArray:
    """Distance of each prediction p from "I do not know", ``KL(U || p)`` in nats, ``[N]``.

    ``sum_c (log(1/C) - log(p_c + 1e-8)) / C`` with U uniform over C classes: 0 if p is uniform (less by about
    C * 1e-8), larger for confident predictions. Its mean over OOD inputs says how well a method knows there
    that it does not know.

    Args:
        probs: ``[N, C]``, rows sum to 1 within 1e-3.

    Raises:
        ValueError: probabilities that are none.
    """
    p = _checked_probs(probs)
    return -np.log(p.shape[1]) - np.log(p + 1e-8).mean(axis=1)


def _brier_decomposition(p: FloatArray, y: IntArray) -> dict[str, float]:
    n, n_classes = p.shape
    predicted = p.argmax(axis=1)
    label_counts = np.bincount(predicted * n_classes + y, minlength=n_classes**2).reshape(n_classes, n_classes)
    group_sizes = label_counts.sum(axis=1)
    frequencies = label_counts / np.maximum(group_sizes, 1)[:, None]  # an empty group has weight 0 below
    overall = label_counts.sum(axis=0) / n
    deviation = frequencies[predicted] - p
    uncertainty = float(overall @ (1 - overall))
    resolution = float(group_sizes @ np.square(frequencies - overall).sum(axis=1) / n)
    reliability = float(np.einsum("nc,nc->", deviation, deviation) / n)
    return {
        "Brier uncertainty": uncertainty,
        "Brier resolution": resolution,
        "Brier reliability": reliability,
        "Brier (via decomposition)": reliability - resolution + uncertainty,
    }


def _adaptive_ece(confidence: FloatArray, correct: NDArray[np.bool_]) -> float:
    n = len(confidence)
    last_of_bin = -(-n * np.arange(1, N_BINS + 1) // N_BINS) - 1
    upper_edges = np.sort(confidence)[last_of_bin]
    # The first bin whose upper edge is not exceeded: unlike a split of the sorted array, ties cannot be torn
    # apart.
    counts, accuracy, mean_confidence = _by_bin(
        confidence, correct, np.searchsorted(upper_edges, confidence, "left"), N_BINS
    )
    occupied = counts > 0
    return float(counts[occupied] @ np.abs(accuracy - mean_confidence)[occupied] / n)


def _equal_width(confidence: FloatArray, n_bins: int) -> IntArray:
    # "left" closes bins on the right; the clip brings in 0 and what rounding has put above 1.
    index = np.searchsorted(np.linspace(0, 1, n_bins + 1), confidence, "left") - 1
    return np.clip(index, 0, n_bins - 1)


def _by_bin(
    confidence: FloatArray, correct: NDArray[np.bool_], index: IntArray, n_bins: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Count, accuracy and mean confidence of each bin; the latter two are NaN in an empty bin."""
    counts = np.bincount(index, minlength=n_bins)
    divisor = np.where(counts > 0, counts, np.nan)
    accuracy = np.bincount(index, correct, n_bins) / divisor
    return counts, accuracy, np.bincount(index, confidence, n_bins) / divisor


def _checked(probs: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    p, y = _checked_probs(probs), np.asarray(labels)
    if y.shape != p.shape[:1]:
        raise ValueError(f"labels must have shape {p.shape[:1]} to fit probs, got {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {y.dtype}")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must lie in [0, {p.shape[1]}), got values from {y.min()} to {y.max()}")
    return p, y.astype(np.int64)


def _checked_probs(probs: ArrayLike) -> FloatArray:
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise ValueError(f"probs must have shape [N, C] with N and C at least 1, got {p.shape}")
    sums = p.sum(axis=1)
    bad = ~(np.abs(sums - 1) <= _SUM_TOLERANCE) | (p < 0).any(axis=1)  # "not <=" because NaN compares false
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"probs must be nonnegative with rows that sum to 1, but row {row} "
            f"has minimum {p[row].min():.4g} and sum {sums[row]:.4g}"
        )
    return p
