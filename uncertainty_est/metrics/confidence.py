"""Confidence intervals of the OOD-detection metrics over the finite test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtri

from uncertainty_est.metrics.ood import (
    OOD_METRICS,
    FloatArray,
    IntArray,
    Ranks,
    auroc,
    exact_metrics,
    rank_scores,
    sorted_scores,
    threshold_metrics,
)

# Elements of one temporary array: replicates go in chunks that stay in the processor's cache.
_CHUNK_ELEMENTS = 1 << 15


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval, ``low <= value <= high``, all in [0, 1].

    Attributes:
        value: the metric itself, not a mean over resamples.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def ood_estimates(
    id_scores: ArrayLike,
    ood_scores: Mapping[str, ArrayLike],
    *,
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Every metric of every OOD set, and its mean over every group of sets, with a confidence interval.

    AUROC: DeLong's variance, and a normal interval on the logit scale; see :func:`_delong_interval` for what
    replaces it where that variance is 0. The other metrics: percentile bootstrap, with ID and OOD resampled
    separately and one ID resample for all OOD sets, since that is what makes a group's mean vary as it does.
    A percentile interval that leaves out the point estimate is extended up to it (the detection error, a
    minimum over thresholds, is biased downwards on resamples). Where resampling cannot change a metric, as
    on sets that do not overlap, its bootstrap interval is a point.

    Args:
        id_scores: ``[n]``, higher = more in-distribution.
        ood_scores: name of an OOD set to its scores ``[m]``.
        groups: name of a group to the names of its OOD sets.
        n_boot: number of resamples.
        level: probability that an interval is to hold the true value, in (0, 1).
        seed: of the resampling. A set's intervals depend on the seed, its name and the scores, not on other
            sets.

    Returns:
        Name of an OOD set or of a group to metric name (:data:`OOD_METRICS`) to estimate.

    Raises:
        ValueError: scores that :func:`ood_metrics` refuses; a group that is empty, repeats a set, names an
            unknown one, or is called like one; `n_boot` or `level` out of range.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), 837-845; Sun & Xu, IEEE Signal Processing
        Letters 21 (2014), 1389-1393 (by ranks); Efron & Tibshirani, An Introduction to the Bootstrap (1993),
        chapter 13.
    """
    if n_boot < 1:
        raise ValueError(f"n_boot must be at least 1, got {n_boot}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    members = {**{name: [name] for name in ood_scores}, **_checked_groups(groups, ood_scores)}
    ascending_id = sorted_scores(id_scores, "id_scores")
    ranks = {
        name: rank_scores(ascending_id, sorted_scores(scores, f"ood_scores['{name}']"))
        for name, scores in ood_scores.items()
    }
    values = {name: exact_metrics(r) for name, r in ranks.items()}
    resampled = _bootstrap(ranks, n_boot, seed)

    estimates: dict[str, dict[str, Estimate]] = {}
    for name, sets in members.items():
        value = {metric: float(np.mean([values[s][metric] for s in sets])) for metric in OOD_METRICS}
        estimates[name] = {"AUROC": Estimate(value["AUROC"], *_delong_interval([ranks[s] for s in sets], level))}
        for metric in OOD_METRICS[1:]:
            means = np.mean([resampled[s][metric] for s in sets], axis=0)
            low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
            low, high = min(float(low), value[metric]), max(float(high), value[metric])
            estimates[name][metric] = Estimate(value[metric], low, high)
    return estimates


def _checked_groups(groups: Mapping[str, Sequence[str]], ood_scores: Mapping[str, ArrayLike]) -> dict[str, list[str]]:
    for group, sets in groups.items():
        unknown = [name for name in sets if name not in ood_scores]
        if unknown:
            raise ValueError(f"group '{group}' names '{unknown[0]}', which is not one of {sorted(ood_scores)}")
        if not sets or len(set(sets)) < len(sets):
            raise ValueError(f"group '{group}' must name at least one OOD set and none twice, got {list(sets)}")
        if group in ood_scores:
            raise ValueError(f"group '{group}' must not be called like an OOD set")
    return {group: list(sets) for group, sets in groups.items()}


def _delong_interval(sets: Sequence[Ranks], level: float) -> tuple[float, float]:
    """Confidence interval of the mean AUROC over OOD sets that share their ID set.

    With the kernel ``h(s, s') = 1[s > s'] + 1[s = s'] / 2``, the structural components are the mean of h
    over the OOD scores for each ID score, ``V10 [n]``, and over the ID scores for each OOD score, ``V01
    [m]``. The mean over K sets has variance ``var(mean_k V10_k) / n + sum_k var(V01_k) / (K^2 m_k)``: the
    sets share the ID scores and nothing else.

    The interval is normal for ``log(A / (1 - A))``, with the variance by the delta method: it stays within
    [0, 1], and near 1, where good detectors are, it holds the true value about as often as it says. The same
    interval for A itself does not: at n = 200, m = 100 and a true AUROC of 0.999 it does so in 78 % of the
    cases instead of 95 %.

    If the components do not vary, all pairs have one value v of h (v = 1: the sets are separated; v = 1/2:
    all scores are equal), and the normal interval would be a point. Match the scores to N = min(n, m)
    disjoint, hence independent pairs: all have value v with probability at most q^N, where q = P(h = v). So
    q >= (alpha / 2)^(1/N) unless something happened that has probability alpha / 2, and the true AUROC lies
    in ``[q v, q v + 1 - q]``. For separated sets that is the interval of Clopper & Pearson for N successes
    of N, about ``1 - 3.7 / N`` at 95 % (the one-sided form is the "rule of three"). It holds for a mean over
    sets too, with tuples for pairs.

    A single score says nothing of the spread of its set: the interval is then [0, 1].

    References:
        DeLong, DeLong & Clarke-Pearson (1988); Pepe, The Statistical Evaluation of Medical Tests (2003),
        chapter 5, and Qin & Hotilovac, Stat. Methods Med. Res. 17 (2008), 207-221 (logit scale); Clopper &
        Pearson, Biometrika 26 (1934), 404-413; Hoeffding, JASA 58 (1963), section 5 (disjoint pairs).
    """
    n_smallest = min(min(r.n_id, r.n_ood) for r in sets)
    if n_smallest == 1:
        return 0.0, 1.0
    v10, v01 = zip(*(structural_components(r) for r in sets), strict=True)
    mean_v10 = np.mean(v10, axis=0)
    value = float(np.mean([auroc(r) for r in sets]))
    tail = (1 - level) / 2
    if np.ptp(mean_v10) == 0 and all(np.ptp(v) == 0 for v in v01):
        q = tail ** (1 / n_smallest)
        return q * value, value + (1 - q) * (1 - value)
    variance = mean_v10.var(ddof=1) / len(mean_v10) + sum(v.var(ddof=1) / len(v) for v in v01) / len(sets) ** 2
    half_width = -ndtri(tail) * np.sqrt(variance) / (value * (1 - value))  # the derivative of the logit
    low, high = expit(logit(value) + np.array([-half_width, half_width]))
    return min(float(low), value), max(float(high), value)  # logit and back may round past the value


def structural_components(ranks: Ranks) -> tuple[FloatArray, FloatArray]:
    """DeLong's ``V10 [n]`` and ``V01 [m]``, in ascending order of scores; the mean of either is the AUROC."""
    v10 = (ranks.ood_below_id + ranks.ood_upto_id) / (2 * ranks.n_ood)
    v01 = 1 - (ranks.id_below_ood + ranks.id_upto_ood) / (2 * ranks.n_id)
    return v10, v01


def _bootstrap(ranks: Mapping[str, Ranks], n_boot: int, seed: int) -> dict[str, dict[str, FloatArray]]:
    """Name of a set to metric name to ``[n_boot]`` values on resamples, for all metrics but AUROC."""
    if not ranks:
        return {}
    n_id = next(iter(ranks.values())).n_id
    # 256 is not a byte of any name, so that the ID set has a stream of its own.
    id_stream = np.random.default_rng([seed, 256])
    streams = {name: np.random.default_rng([seed, *name.encode()]) for name in ranks}
    values: dict[str, dict[str, list[FloatArray]]] = {n: {m: [] for m in OOD_METRICS[1:]} for n in ranks}
    chunk = max(1, _CHUNK_ELEMENTS // max(n_id, *(r.n_ood for r in ranks.values())))
    for start in range(0, n_boot, chunk):
        size = min(chunk, n_boot - start)
        id_cum = resample(id_stream, size, n_id)
        for name, r in ranks.items():
            for metric, v in threshold_metrics(r, id_cum, resample(streams[name], size, r.n_ood)).items():
                values[name][metric].append(v)
    return {name: {metric: np.concatenate(v) for metric, v in of.items()} for name, of in values.items()}


def resample(rng: np.random.Generator, replicates: int, n: int) -> IntArray:
    """How often the j smallest of n scores occur when n are drawn with replacement, ``[R, n + 1]``."""
    drawn = rng.integers(n, size=(replicates, n)) + np.arange(replicates)[:, None] * n
    multiplicities = np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n)
    cumulated = np.zeros((replicates, n + 1), dtype=np.int64)
    np.cumsum(multiplicities, axis=1, out=cumulated[:, 1:])
    return cumulated
