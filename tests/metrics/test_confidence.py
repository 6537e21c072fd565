"""Confidence intervals: exact pieces against naive recomputation, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from uncertainty_est.metrics import confidence
from uncertainty_est.metrics.confidence import Estimate, ood_estimates, resample, structural_components
from uncertainty_est.metrics.ood import OOD_METRICS, ood_metrics, rank_scores, threshold_metrics

tied = arrays(np.float64, st.integers(2, 25), elements=st.integers(-4, 4).map(float))


def kernel(id_scores: np.ndarray, ood_scores: np.ndarray) -> np.ndarray:
    return (id_scores[:, None] > ood_scores) + 0.5 * (id_scores[:, None] == ood_scores)


def auroc_interval(id_scores: np.ndarray, ood_scores: np.ndarray, level: float = 0.95) -> Estimate:
    return ood_estimates(id_scores, {"ood": ood_scores}, n_boot=1, level=level)["ood"]["AUROC"]


def logit_interval(value: float, variance: float, level: float) -> tuple[float, float]:
    half_width = norm.ppf((1 + level) / 2) * np.sqrt(variance) / (value * (1 - value))
    low, high = np.log(value / (1 - value)) + np.array([-half_width, half_width])
    return 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))


@settings(max_examples=150)
@given(tied, tied)
def test_structural_components_are_row_and_column_means(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    id_scores, ood_scores = np.sort(id_scores), np.sort(ood_scores)
    h = kernel(id_scores, ood_scores)
    v10, v01 = structural_components(rank_scores(id_scores, ood_scores))
    np.testing.assert_allclose(v10, h.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(v01, h.mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_auroc_interval_from_all_pairs_with_ties(level: float) -> None:
    rng = np.random.default_rng(1)
    id_scores, ood_scores = rng.normal(1, 1, 90).round(1), rng.normal(0, 1, 60).round(1)
    h = kernel(id_scores, ood_scores)
    variance = h.mean(axis=1).var(ddof=1) / 90 + h.mean(axis=0).var(ddof=1) / 60
    estimate = auroc_interval(id_scores, ood_scores, level)
    assert estimate.value == pytest.approx(h.mean(), abs=1e-14)
    assert (estimate.low, estimate.high) == pytest.approx(logit_interval(h.mean(), variance, level), abs=1e-12)


def test_group_auroc_accounts_for_the_shared_id_set() -> None:
    """The variance of the mean from DeLong's full covariance matrix over all pairs of sets."""
    rng = np.random.default_rng(2)
    id_scores = rng.normal(1, 1, 80)
    ood = {"a": rng.normal(0, 1, 50), "b": rng.normal(0.3, 2, 70), "c": rng.normal(-1, 1, 30)}
    h = [kernel(id_scores, scores) for scores in ood.values()]
    covariance = np.cov([k.mean(axis=1) for k in h]) / 80
    covariance += np.diag([k.mean(axis=0).var(ddof=1) / k.shape[1] for k in h])
    value, variance = np.mean([k.mean() for k in h]), covariance.sum() / 9

    estimate = ood_estimates(id_scores, ood, groups={"all": list(ood)}, n_boot=1)["all"]["AUROC"]
    assert estimate.value == pytest.approx(value, abs=1e-14)
    assert (estimate.low, estimate.high) == pytest.approx(logit_interval(value, variance, 0.95), abs=1e-12)
    independent = np.trace(covariance) / 9
    assert independent < 0.8 * variance  # else the test could not tell whether the sharing is accounted for


@pytest.mark.parametrize(("n", "m", "auroc"), [(100, 100, 0.76), (200, 100, 0.95), (60, 300, 0.9), (500, 500, 0.99)])
def test_auroc_interval_covers_the_true_value(n: int, m: int, auroc: float) -> None:
    """Binormal scores of unit variance at distance d have AUROC ``Phi(d / sqrt 2)``."""
    rng = np.random.default_rng(n + m)
    distance, repetitions = norm.ppf(auroc) * np.sqrt(2), 1000
    intervals = [auroc_interval(rng.normal(distance, 1, n), rng.normal(0, 1, m)) for _ in range(repetitions)]
    covered = np.mean([e.low <= auroc <= e.high for e in intervals])
    assert 0.92 <= covered <= 0.98


def test_group_intervals_cover_the_true_mean() -> None:
    rng = np.random.default_rng(5)
    aurocs = {"a": 0.7, "b": 0.9, "c": 0.8}
    hits = {"AUROC": 0, "FPR95": 0}
    # FPR95 of binormal scores at distance d: P(ood >= 5 % quantile of ID) = Phi(Phi^-1(0.95) - d).
    distances = {name: norm.ppf(a) * np.sqrt(2) for name, a in aurocs.items()}
    truth = {
        "AUROC": np.mean(list(aurocs.values())),
        "FPR95": np.mean([norm.cdf(norm.ppf(0.95) - d) for d in distances.values()]),
    }
    for seed in range(400):
        # The ID scores are shared: each OOD set is shifted instead.
        ood = {name: rng.normal(-d, 1, 100) for name, d in distances.items()}
        group = ood_estimates(rng.normal(0, 1, 100), ood, groups={"all": ["a", "b", "c"]}, n_boot=100, seed=seed)
        for metric in hits:
            hits[metric] += group["all"][metric].low <= truth[metric] <= group["all"][metric].high
    assert 0.92 <= hits["AUROC"] / 400 <= 0.98
    assert 0.89 <= hits["FPR95"] / 400 <= 0.98  # a percentile bootstrap of a quantile, with 100 resamples


@pytest.mark.parametrize("decimals", [0, 10], ids=["many ties", "no ties"])
def test_resampled_metrics_equal_metrics_of_the_repeated_scores(decimals: int) -> None:
    rng = np.random.default_rng(3)
    id_scores = np.sort(rng.normal(1, 2, 60).round(decimals))
    ood_scores = np.sort(rng.normal(0, 2, 35).round(decimals))
    id_cum, ood_cum = resample(rng, 25, 60), resample(rng, 25, 35)
    fast = threshold_metrics(rank_scores(id_scores, ood_scores), id_cum, ood_cum)
    for r in range(25):
        repeated = (np.repeat(scores, np.diff(cum[r])) for scores, cum in ((id_scores, id_cum), (ood_scores, ood_cum)))
        naive = ood_metrics(*repeated)
        assert {name: values[r] for name, values in fast.items()} == pytest.approx(
            {name: naive[name] for name in OOD_METRICS[1:]}, abs=1e-12
        )


def test_resamples_are_multinomial() -> None:
    multiplicity = np.diff(resample(np.random.default_rng(4), 20_000, 8), axis=1)
    assert (multiplicity.sum(axis=1) == 8).all()
    # n draws from n scores: mean 1, variance 1 - 1/n, covariance -1/n.
    np.testing.assert_allclose(multiplicity.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(np.cov(multiplicity.T), np.eye(8) - 1 / 8, atol=0.04)


def test_bootstrap_agrees_with_delong() -> None:
    """Two routes to the same interval: one metric is a mean of kernels and could be had from either."""
    rng = np.random.default_rng(6)
    id_scores, ood_scores = np.sort(rng.normal(1, 1, 300)), np.sort(rng.normal(0, 1, 200))
    replicates = [ood_metrics(rng.choice(id_scores, 300), rng.choice(ood_scores, 200))["AUROC"] for _ in range(2000)]
    estimate = auroc_interval(id_scores, ood_scores)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=0.006)


def test_one_id_resample_serves_all_sets() -> None:
    """A group of two sets with equal scores varies less than one set only through its OOD resamples."""
    rng = np.random.default_rng(7)
    id_scores, far = rng.normal(0, 1, 200), rng.normal(-1, 1, 40_000)
    ood = {"a": far, "b": far[::-1]}  # so many that nearly all variance is that of the ID resample
    estimates = ood_estimates(id_scores, ood, groups={"both": ["a", "b"]}, n_boot=200)
    width = {name: e["FPR95"].high - e["FPR95"].low for name, e in estimates.items()}
    assert width["both"] == pytest.approx(width["a"], rel=0.1)  # with separate ID resamples: 0.71 of it


def test_a_set_is_estimated_alike_whatever_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    id_scores, a, b = rng.normal(1, 1, 50), rng.normal(0, 1, 40), rng.normal(0, 1, 70)
    alone = ood_estimates(id_scores, {"a": a}, n_boot=50)
    assert ood_estimates(id_scores, {"b": b, "a": a}, n_boot=50)["a"] == alone["a"]
    assert ood_estimates(rng.permutation(id_scores), {"a": rng.permutation(a)}, n_boot=50) == alone
    assert ood_estimates(id_scores, {"a": a}, n_boot=50, seed=1) != alone
    monkeypatch.setattr(confidence, "_CHUNK_ELEMENTS", 1)
    assert ood_estimates(id_scores, {"a": a}, n_boot=50) == alone


@settings(max_examples=100)
@given(
    arrays(np.float64, st.integers(1, 12), elements=st.integers(-3, 3).map(float)),
    arrays(np.float64, st.integers(1, 12), elements=st.integers(-3, 3).map(float)),
    arrays(np.float64, st.integers(1, 12), elements=st.integers(-3, 3).map(float)),
)
def test_intervals_hold_the_exact_value(id_scores: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    estimates = ood_estimates(id_scores, {"a": a, "b": b}, groups={"both": ["b", "a"]}, n_boot=8)
    assert list(estimates) == ["a", "b", "both"]
    exact = {"a": ood_metrics(id_scores, a), "b": ood_metrics(id_scores, b)}
    for name, of in estimates.items():
        assert tuple(of) == OOD_METRICS
        for metric, estimate in of.items():
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            sets = ["a", "b"] if name == "both" else [name]
            assert estimate.value == pytest.approx(np.mean([exact[s][metric] for s in sets]), abs=1e-15)


def test_separated_sets_get_the_interval_of_clopper_and_pearson() -> None:
    upper = np.arange(50.0) + 1000
    estimate = auroc_interval(upper, np.arange(80.0))
    assert estimate == Estimate(1.0, pytest.approx(0.025 ** (1 / 50), abs=1e-14), 1.0)
    estimate = auroc_interval(np.arange(80.0), upper)
    assert estimate == Estimate(0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 50), abs=1e-14))


def test_separated_sets_are_not_taken_for_certain() -> None:
    """At the lower end, the distribution likeliest to separate the samples does so in 2.5 % of all cases."""
    rng = np.random.default_rng(9)
    n, true_auroc = 40, 0.025 ** (1 / 40)  # a share 1 - AUROC of the OOD inputs lies above all ID inputs
    separated = (rng.random((20_000, n)) < true_auroc).all(axis=1).mean()
    assert separated == pytest.approx(0.025, abs=0.004)
    assert auroc_interval(np.ones(n), np.zeros(n)).low == pytest.approx(true_auroc, abs=1e-14)


def test_constant_scores_and_single_scores_have_wide_intervals() -> None:
    q = 0.025 ** (1 / 30)
    estimate = auroc_interval(np.ones(30), np.ones(40))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, q / 2, 1 - q / 2), abs=1e-14)
    assert auroc_interval(np.array([0.5]), np.arange(5.0)) == Estimate(0.2, 0.0, 1.0)
    assert auroc_interval(np.arange(5.0), np.array([0.5])) == Estimate(0.8, 0.0, 1.0)


def test_a_group_of_separated_sets() -> None:
    ood = {"a": np.zeros(20), "b": np.zeros(70)}
    group = ood_estimates(np.ones(50), ood, groups={"both": ["a", "b"]}, n_boot=2)["both"]
    assert group["AUROC"] == Estimate(1.0, pytest.approx(0.025 ** (1 / 20), abs=1e-14), 1.0)
    assert group["FPR95"] == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"near": ["a", "c"]}}, r"group 'near' names 'c', which is not one of \['a', 'b'\]"),
        ({"groups": {"near": []}}, "group 'near' must name at least one OOD set"),
        ({"groups": {"near": ["a", "a"]}}, "none twice"),
        ({"groups": {"a": ["b"]}}, "group 'a' must not be called like an OOD set"),
        ({"n_boot": 0}, "n_boot must be at least 1, got 0"),
        ({"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
        ({"level": 95}, "level must lie between 0 and 1, got 95"),
    ],
)
def test_refused_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ood_estimates([1.0, 2.0], {"a": [0.0], "b": [0.0]}, **arguments)


def test_refused_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"ood_scores\['svhn'\] must not be NaN"):
        ood_estimates([1.0], {"svhn": [np.nan]})
    with pytest.raises(ValueError, match="id_scores must hold at least one score"):
        ood_estimates([], {})
