"""How well a score tells which predictions to accept, on data alone and among out-of-distribution inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

SELECTIVE_METRICS = ("AURC", "E-AURC", "AUGRC", "Cov@5Risk", "Risk@80Cov")
# The excess compares with the best order of ID errors alone, which says nothing where OOD inputs are errors too.
SCOD_METRICS = ("AURC", "AUGRC", "Cov@5Risk", "Risk@80Cov")


def selective_metrics(scores: ArrayLike, errors: ArrayLike) -> dict[str, FloatArray]:
    r"""All of :data:`SELECTIVE_METRICS` of S scores for the same N predictions, as fractions, from one sort each.

    A prediction is accepted at a threshold if its score is at least that. Predictions of equal score are hence accepted
    together, and the order of the input does not matter. The distinct thresholds, the strictest first, accept
    :math:`n_1 < \dots < n_J = N` predictions with :math:`e_j` errors among them: coverage :math:`n_j / N`, risk
    :math:`e_j / n_j`, generalised risk :math:`e_j / N`.

    - ``AURC`` :math:`= \sum_j \frac{n_j - n_{j-1}}{N} \frac{e_j}{n_j}`: the mean, over predictions, of the risk at
      their own threshold.
    - ``E-AURC``: its excess over that of the best order, all right predictions before all wrong ones, without ties.
    - ``AUGRC`` :math:`= \sum_j \frac{n_j - n_{j-1}}{N} \frac{e_{j-1} + e_j}{2 N}`, the trapezoids under the generalised
      risk from coverage 0. With :math:`r = e_J / N` and A the AUROC of right against wrong, ties half, it is
      :math:`r^2 / 2 + (1 - A)\,r\,(1 - r)`.
    - ``Cov@5Risk``: largest coverage with a risk of at most 5 %; 0 where no threshold has that.
    - ``Risk@80Cov``: risk at the strictest threshold that accepts at least 80 %.

    Lower is better, but for the coverage. A score without information has an AURC of about r and an AUGRC of r / 2.

    Args:
        scores: ``[S, N]``, higher = to be accepted earlier.
        errors: ``[N]`` of booleans: predictions that must not be accepted.

    Returns:
        Metric name to ``[S]``, each in [0, 1].

    Raises:
        ValueError: shapes that do not fit, no predictions, scores that are NaN, errors that are not booleans.

    References:
        Geifman and El-Yaniv, arXiv:1705.08500 (risk and coverage); Geifman et al., arXiv:1805.08206 (AURC, E-AURC);
        Traub et al., arXiv:2407.01032, Section 3 (AUGRC).
    """
    s, wrong = _checked(scores, errors)
    n = s.shape[1]
    order = np.argsort(-s, axis=1)
    descending = np.take_along_axis(s, order, axis=1)
    last_of_ties = np.ones(s.shape, dtype=np.bool_)
    last_of_ties[:, :-1] = descending[:, :-1] != descending[:, 1:]

    # One entry for each distinct threshold, score after score.
    end = np.flatnonzero(last_of_ties)
    tied = np.diff(end, prepend=-1)
    accepted = end % n + 1
    accepted_errors = wrong[order].cumsum(axis=1).ravel()[end]
    start = np.flatnonzero(accepted == tied)  # first entry of each score
    errors_before = np.roll(accepted_errors, 1)
    errors_before[start] = 0

    risk = accepted_errors / accepted
    aurc = np.add.reduceat(tied * risk, start) / n
    n_errors = int(wrong.sum())
    best = (np.arange(1, n_errors + 1) / np.arange(n - n_errors + 1, n + 1)).sum() / n
    # In integers: 5 % and 80 % of a number are met or not, whatever the rounding.
    covered = np.maximum.reduceat(np.where(20 * accepted_errors <= accepted, accepted, 0), start)
    at_80 = np.minimum.reduceat(np.where(5 * accepted >= 4 * n, np.arange(end.size), end.size), start)
    return {
        "AURC": aurc,
        "E-AURC": np.maximum(aurc - best, 0),  # rounding alone can fall below
        "AUGRC": np.add.reduceat(tied * (errors_before + accepted_errors), start) / (2 * n**2),
        "Cov@5Risk": covered / n,
        "Risk@80Cov": risk[at_80],
    }


def scod_metrics(id_scores: ArrayLike, errors: ArrayLike, ood_scores: ArrayLike) -> dict[str, FloatArray]:
    """:data:`SCOD_METRICS` of selective classification with OOD inputs, see :func:`selective_metrics`.

    Over the ID and the OOD set together: an accepted OOD input is an error, as bad as a wrong prediction on ID data.
    The values depend on n : m, as coverage is that of both sets; ``Cov@5Risk`` cannot exceed ``n / (0.95 (n + m))``.

    Args:
        id_scores: ``[S, n]``, higher = to be accepted earlier.
        errors: ``[n]`` of booleans, the wrong predictions.
        ood_scores: ``[S, m]``.

    Returns:
        Metric name to ``[S]``, each in [0, 1].

    Raises:
        ValueError: as :func:`selective_metrics`.

    References:
        Xia and Bouganis, ACCV 2022 (arXiv:2207.07506); Jaeger et al., arXiv:2211.15259; both errors cost the same.
    """
    known, unknown = np.asarray(id_scores, dtype=np.float64), np.asarray(ood_scores, dtype=np.float64)
    if unknown.ndim != 2 or known.ndim != 2 or len(known) != len(unknown):
        raise ValueError(f"id_scores [S, n] and ood_scores [S, m] must fit, got {known.shape} and {unknown.shape}")
    _, wrong = _checked(known, errors)
    both = selective_metrics(
        np.concatenate([known, unknown], axis=1), np.concatenate([wrong, np.ones(unknown.shape[1], dtype=np.bool_)])
    )
    return {name: both[name] for name in SCOD_METRICS}


def _checked(scores: ArrayLike, errors: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    s, wrong = np.asarray(scores, dtype=np.float64), np.asarray(errors)
    if s.ndim != 2 or 0 in s.shape:
        raise ValueError(f"scores must have shape [S, N] with S and N at least 1, got {s.shape}")
    if wrong.shape != s.shape[1:]:
        raise ValueError(f"errors must have shape {s.shape[1:]} to fit scores, got {wrong.shape}")
    if wrong.dtype != np.bool_:
        raise ValueError(f"errors must be booleans, got {wrong.dtype}")
    if np.isnan(s).any():
        raise ValueError("scores must not be NaN")
    return s, wrong
