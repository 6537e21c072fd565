"""Paired tests of whether one of two methods is better, from the values of both with the same seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

MIN_PAIRS = 3
"""With fewer pairs nothing is tested."""


def t_test(advantage: np.ndarray) -> float:
    r"""Student's paired test: :math:`t = \bar d \sqrt n / s_d` with n - 1 degrees of freedom.

    Args:
        advantage: differences of pairs ``[n]``, n at least 2, not all 0.

    Returns:
        Probability of as large a mean difference or a larger one if the expectation is 0.
    """
    with np.errstate(divide="ignore"):  # equal differences: t is infinite
        t = advantage.mean() * len(advantage) ** 0.5 / advantage.std(ddof=1)
    return float(stats.t.sf(t, len(advantage) - 1))


def wilcoxon_test(advantage: np.ndarray) -> float:
    """Wilcoxon's signed-rank test, exact also with ties, which share their mean rank; zeros are left out.

    Args:
        advantage: differences of pairs ``[n]``, not all 0.

    Returns:
        Share of the 2^n choices of signs whose sum of positive ranks is as large or larger.
    """
    advantage = advantage[advantage != 0]
    doubled = (2 * stats.rankdata(np.abs(advantage))).astype(int)  # mean ranks are multiples of a half
    chances = np.ones(1)
    for rank in doubled:  # the sum with and without this rank, each with probability 1/2
        chances = (np.append(chances, np.zeros(rank)) + np.append(np.zeros(rank), chances)) / 2
    return float(chances[doubled[advantage > 0].sum() :].sum())


def sign_test(advantage: np.ndarray) -> float:
    """Exact sign test; zeros are left out.

    Args:
        advantage: differences of pairs ``[n]``, not all 0.

    Returns:
        Probability of as many positive signs or more if both are equally likely.
    """
    n, positive = int((advantage != 0).sum()), int((advantage > 0).sum())
    return float(stats.binomtest(positive, n, alternative="greater").pvalue)


TESTS: dict[str, tuple[Callable[[np.ndarray], float], str]] = {
    "t": (t_test, "t-test"),
    "wilcoxon": (wilcoxon_test, "exact Wilcoxon signed-rank test"),
    "sign": (sign_test, "exact sign test"),
}
"""Name of a paired test to the function, of the best method's advantage in each pair, and what a caption calls it."""


def p_value(advantage: np.ndarray, test: str) -> float:
    """One-sided p-value of one method being no better than another, though it looks so.

    Args:
        advantage: by how much it is better in each pair ``[n]``, NaN where a pair is not complete.
        test: a key of :data:`TESTS`.

    Returns:
        In [0, 1], 1 where all pairs are equal; NaN with fewer than 3 of them.
    """
    advantage = advantage[~np.isnan(advantage)]
    if len(advantage) < MIN_PAIRS:
        return float("nan")
    return TESTS[test][0](advantage) if advantage.any() else 1.0
