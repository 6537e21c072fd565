"""Paired tests: against scipy where it is exact, and in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from uncertainty_est.metrics.paired import TESTS, p_value, sign_test, t_test, wilcoxon_test


def test_tests_agree_with_scipy_and_with_closed_forms() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 5, 12):
        d = rng.normal(0.5, size=n)
        assert t_test(d) == pytest.approx(stats.ttest_1samp(d, 0, alternative="greater").pvalue)
        exact = stats.wilcoxon(d, alternative="greater", method="exact").pvalue
        assert wilcoxon_test(d) == pytest.approx(exact)
        assert sign_test(np.abs(d)) == pytest.approx(2.0**-n) == pytest.approx(wilcoxon_test(np.abs(d)))
    # Ranks 1.5, 1.5, 3 with one of the small ones negative: 4.5 of 6; of eight choices of signs three reach that.
    assert wilcoxon_test(np.array([1.0, -1.0, 2.0, 0.0])) == pytest.approx(3 / 8)
    assert sign_test(np.array([1.0, -1.0, 2.0, 0.0])) == pytest.approx(1 / 2)
    assert t_test(np.array([0.5, 0.5, 0.5])) == 0.0


@pytest.mark.parametrize("test", TESTS)
def test_incomplete_pairs_are_left_out_and_few_or_equal_ones_decide_nothing(test: str) -> None:
    nan = float("nan")
    advantage = np.array([1.0, 0.5, 0.25, 2.0])
    assert p_value(np.append(advantage, nan), test) == p_value(advantage, test) == TESTS[test][0](advantage)
    assert p_value(-advantage, test) > 0.9
    assert math.isnan(p_value(np.array([1.0, nan, 2.0]), test))
    assert p_value(np.zeros(4), test) == 1.0
