"""How well a score tells in-distribution (ID) from out-of-distribution (OOD) inputs; higher = more ID."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OOD_METRICS = ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95", "Detection error")


def ood_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> dict[str, float]:
    """All of :data:`OOD_METRICS`, as fractions, after sorting each score once.

    An input is accepted as ID at threshold t if its score is >= t. With s ID and s' OOD scores:

    - ``AUROC = P(s > s') + P(s = s') / 2``.
    - ``AUPR-IN``: average precision with ID as the positive class, ``sum_k (R_k - R_{k-1}) P_k`` over
      distinct thresholds. It steps and does not interpolate: the trapezoid under the same points is
      optimistic.
    - ``AUPR-OUT``: the same with OOD as the positive class, ranked by the negated score.
    - ``FPR95``: share of OOD accepted at the largest threshold that accepts at least 95 % of the ID inputs.
    - ``Detection error = min_t P(s < t) / 2 + P(s' >= t) / 2``, at most 1/2.

    Both AUPRs depend on n : m; by chance AUPR-IN is n / (n + m) and AUPR-OUT is m / (n + m).

    Args:
        id_scores: ``[n]``.
        ood_scores: ``[m]``. n and m may differ: nothing is cut off.

    Returns:
        Metric name to a value in [0, 1].

    Raises:
        ValueError: scores that are empty, NaN or not one-dimensional.

    References:
        Hendrycks & Gimpel, arXiv 1610.02136 (AUROC, AUPR); Liang et al., arXiv 1706.02690 (FPR95,
        detection error); Davis & Goadrich, ICML 2006 (why not to interpolate precision).
    """
    return exact_metrics(rank_scores(sorted_scores(id_scores, "id_scores"), sorted_scores(ood_scores, "ood_scores")))


def roc_curve(id_scores: ArrayLike, ood_scores: ArrayLike, max_points: int = 2000) -> tuple[FloatArray, FloatArray]:
    """Shares of OOD and of ID inputs that are accepted, from the strictest threshold to the most lenient.

    Args:
        id_scores: ``[n]``.
        ood_scores: ``[m]``.
        max_points: longer curves are thinned evenly to this many points, both ends included.

    Returns:
        ``(fpr_ood, tpr_id)``, each ``[k]``, nondecreasing from 0 to 1. Ties give slanted pieces, so that the
        trapezoid under the whole curve is the AUROC.

    Raises:
        ValueError: scores that are empty, NaN or not one-dimensional.
    """
    ascending_id, ascending_ood = (
        sorted_scores(id_scores, "id_scores"),
        sorted_scores(ood_scores, "ood_scores"),
    )
    thresholds = np.unique(np.concatenate([ascending_id, ascending_ood]))[::-1]
    fpr, tpr = (
        np.concatenate([[0.0], (s.size - np.searchsorted(s, thresholds)) / s.size])
        for s in (ascending_ood, ascending_id)
    )
    if fpr.size > max_points:
        kept = np.linspace(0, fpr.size - 1, max_points).round().astype(np.int64)
        fpr, tpr = fpr[kept], tpr[kept]
    return fpr, tpr


@dataclass(frozen=True)
class Ranks:
    """Where every score stands in its own set and in the other one; all that the metrics ask of the scores.

    "Below" counts strictly smaller scores, "upto" also equal ones, which is how ties are told apart. Entries
    follow the ascending order of the set that comes last in the name, whatever the order of the input.
    """

    id_below_id: IntArray  # [n]
    ood_below_id: IntArray  # [n]
    ood_upto_id: IntArray  # [n]
    ood_upto_ood: IntArray  # [m]
    id_below_ood: IntArray  # [m]
    id_upto_ood: IntArray  # [m]

    @property
    def n_id(self) -> int:
        """Number n of ID scores."""
        return self.id_below_id.size

    @property
    def n_ood(self) -> int:
        """Number m of OOD scores."""
        return self.ood_upto_ood.size


def sorted_scores(scores: ArrayLike, name: str) -> FloatArray:
    """An ascending float64 copy of `scores`; `name` says in an error which scores they are.

    Raises:
        ValueError: they are empty, NaN or not one-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{name} must hold at least one score, got none")
    ascending = np.sort(values)
    if np.isnan(ascending[-1]):  # a sort puts NaN last
        raise ValueError(f"{name} must not be NaN, got NaN in {np.isnan(ascending).sum()} of {values.size}")
    return ascending


def rank_scores(ascending_id: FloatArray, ascending_ood: FloatArray) -> Ranks:
    """:class:`Ranks` of two sets that :func:`sorted_scores` has sorted, by one search and otherwise by counting."""
    id_below_id, _ = _below_and_upto(ascending_id)
    _, ood_upto_ood = _below_and_upto(ascending_ood)
    n_ood = ascending_ood.size
    ood_below_id = np.searchsorted(ascending_ood, ascending_id, "left")
    # Where OOD scores equal an ID score, they begin at the position found; above the largest, nothing is equal.
    found = np.minimum(ood_below_id, n_ood - 1)
    ood_upto_id = np.where(ascending_ood[found] == ascending_id, ood_upto_ood[found], ood_below_id)
    # The j-th OOD score is not below an ID score that has at most j OOD scores below it, and likewise with equal ones.
    return Ranks(
        id_below_id=id_below_id,
        ood_below_id=ood_below_id,
        ood_upto_id=ood_upto_id,
        ood_upto_ood=ood_upto_ood,
        id_below_ood=np.bincount(ood_upto_id, minlength=n_ood).cumsum()[:n_ood],
        id_upto_ood=np.bincount(ood_below_id, minlength=n_ood).cumsum()[:n_ood],
    )


def _below_and_upto(ascending: FloatArray) -> tuple[IntArray, IntArray]:
    """How many of a sorted set are smaller than each of its entries, and how many are smaller or equal."""
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    ends = np.append(starts[1:], ascending.size)
    return np.repeat(starts, ends - starts), np.repeat(ends, ends - starts)


def exact_metrics(ranks: Ranks) -> dict[str, float]:
    """:func:`ood_metrics` of scores that are ranked already."""
    position = np.array([ranks.n_id - _accepted_at_95(ranks.n_id)])
    # Counts of scores that occur once each are their ranks.
    rest = _from_counts(
        ranks.id_below_id[None], ranks.ood_below_id[None], ranks.id_upto_ood[None], ranks.ood_upto_ood[None], position
    )
    return {"AUROC": auroc(ranks), **{name: float(values[0]) for name, values in rest.items()}}


def auroc(ranks: Ranks) -> float:
    """``P(s > s') + P(s = s') / 2``, with the pairs counted in integers."""
    twice_won = int(ranks.ood_below_id.sum() + ranks.ood_upto_id.sum())
    return twice_won / (2 * ranks.n_id * ranks.n_ood)


def threshold_metrics(ranks: Ranks, id_cum: IntArray, ood_cum: IntArray) -> dict[str, FloatArray]:
    """All metrics but AUROC, of R samples in which every score may occur any number of times.

    Args:
        ranks: of the scores when each occurs once.
        id_cum: ``[R, n + 1]``; entry j is how often the j smallest ID scores occur together, hence n in the
            last.
        ood_cum: ``[R, m + 1]``, likewise.

    Returns:
        Metric name to ``[R]``.
    """
    # The k-th largest is the first in ascending order with more than n - k at or below it.
    n = ranks.n_id
    position = np.count_nonzero(id_cum[:, 1:] <= n - _accepted_at_95(n), axis=1)
    # take: indexing with [:, positions] would lay out the result by columns, which is several times slower.
    return _from_counts(
        id_cum.take(ranks.id_below_id, axis=1),
        ood_cum.take(ranks.ood_below_id, axis=1),
        id_cum.take(ranks.id_upto_ood, axis=1),
        ood_cum.take(ranks.ood_upto_ood, axis=1),
        position,
        (np.diff(id_cum), np.diff(ood_cum)),
    )


def _accepted_at_95(n: int) -> int:
    """ceil(0.95 n) in integers, which no rounding can push up by one."""
    return -(-19 * n // 20)


def _from_counts(
    id_below_id: IntArray,
    ood_below_id: IntArray,
    id_upto_ood: IntArray,
    ood_upto_ood: IntArray,
    position: IntArray,
    multiplicity: tuple[IntArray | None, IntArray | None] = (None, None),
) -> dict[str, FloatArray]:
    """:func:`threshold_metrics` of what is rejected at the threshold of each score, counted in each of R samples.

    Args:
        id_below_id: ID scores below each ID score, ``[R, n]``.
        ood_below_id: OOD scores below each ID score, ``[R, n]``.
        id_upto_ood: ID scores up to each OOD score, ``[R, m]``: the threshold is just above it.
        ood_upto_ood: OOD scores up to each OOD score, ``[R, m]``.
        position: of the threshold of FPR95 among ID scores, ``[R]``.
        multiplicity: how often each ID score occurs, ``[R, n]``, and each OOD score, ``[R, m]``; once if ``None``.
    """
    n, m = id_below_id.shape[1], ood_upto_ood.shape[1]
    id_accepted, ood_accepted = n - id_below_id, m - ood_below_id
    # Every other threshold accepts as many ID scores as the next ID score above it, and no fewer OOD scores;
    # above the last ID score the best error is the 1/2 of accepting nothing.
    errors = (id_below_id * m + ood_accepted * n).min(axis=1)
    return {
        "AUPR-IN": _average_precision(multiplicity[0], id_accepted, ood_accepted) / n,
        "AUPR-OUT": _average_precision(multiplicity[1], ood_upto_ood, id_upto_ood) / m,
        "FPR95": ood_accepted[np.arange(len(position)), position] / m,
        "Detection error": np.minimum(errors, n * m) / (2 * n * m),
    }


def _average_precision(multiplicity: IntArray | None, true: IntArray, false: IntArray) -> FloatArray:
    """Sum over positives of the precision at their thresholds, ``[R, k]`` to ``[R]``."""
    # A threshold without any score at or beyond it belongs to a positive that does not occur: 0 / 1 instead
    # of 0 / 0.
    precision = true / np.maximum(true + false, 1)
    return precision.sum(axis=1) if multiplicity is None else np.einsum("rk,rk->r", multiplicity, precision)
