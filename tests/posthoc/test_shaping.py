"""Shaped energies: the papers' steps on features that can be followed by hand, quantiles, and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.posthoc.conftest import Samples
from uncertainty_est.errors import NotFittedError
from uncertainty_est.posthoc.base import PosthocScore, scores_named
from uncertainty_est.posthoc.shaping import ASH, DICE, SCALE, ReAct, quantile


def head_of(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    head = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.copy_(torch.tensor(bias))
    return head


def energy(*logits: float) -> float:
    return math.log(sum(math.exp(f) for f in logits))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("q", [0.0, 0.123, 0.5, 0.9, 1.0])
def test_quantiles_are_numpys(n: int, q: float) -> None:
    values = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert quantile(values, q).item() == pytest.approx(np.quantile(values.numpy(), q), rel=1e-14)


@pytest.mark.parametrize(
    ("score", "logits"),
    [
        # Largest half of (1, 4, 3, 2): 4 and 3. Sums 10 and 7.
        (ASH(50, "p"), (4.0, 3.0)),
        (ASH(50, "b"), (5.0, 5.0)),
        (ASH(50, "s"), (4 * math.exp(10 / 7), 3 * math.exp(10 / 7))),
        (SCALE(50), (6 * math.exp(10 / 7), 4 * math.exp(10 / 7))),
        # The quantile 2/3 of 1, 2, 3, 4 is 3.
        (ReAct(200 / 3), (3 + 2.0, 3 + 1.0)),
    ],
)
def test_shapes_by_hand(score: PosthocScore, logits: tuple[float, float]) -> None:
    z = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    head = head_of([[0, 1, 0, 1], [1, 0, 1, 0]], [0.0, 0.0])
    score.fit(z, head(z), torch.zeros(1, dtype=torch.long), head)
    assert score.score(z, head(z)).item() == pytest.approx(energy(*logits), rel=1e-6)


def test_dice_keeps_what_contributes_most() -> None:
    head = head_of([[1.0, -1.0], [2.0, 0.5]], [0.25, -0.5])
    features = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # means 2 and 2: contributions 2, -2, 4, 1
    dice = DICE(percentile=50)  # 1.5
    dice.fit(features, head(features), torch.tensor([0, 1]), head)
    z = torch.tensor([[1.0, 10.0]])
    assert dice.score(z, head(z)).item() == pytest.approx(energy(1.25, 1.5), rel=1e-6)
    assert head.weight.tolist() == [[1.0, -1.0], [2.0, 0.5]]


def test_shapes_that_change_nothing_leave_the_energy(samples: Samples) -> None:
    own = samples.head(samples.z).detach().double().logsumexp(-1)
    torch.testing.assert_close(samples.scores(ASH(0.0, "p")), own, rtol=1e-5, atol=1e-5)
    for score in (ASH(0.0, "s"), SCALE(0.0)):
        scaled = samples.head(samples.z * math.e).detach().double().logsumexp(-1)
        torch.testing.assert_close(samples.scores(score), scaled, rtol=1e-5, atol=1e-5)
    clipped = ReAct(percentile=99.999)
    samples.scores(clipped)
    inside = samples.features[:5]
    torch.testing.assert_close(
        clipped.score(inside, inside), samples.head(inside).detach().double().logsumexp(-1), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", ["ash", "ash:variant=b", "scale", "react", "dice", "gradnorm"])
def test_features_that_are_all_zero_have_a_score(samples: Samples, name: str) -> None:
    (score,) = scores_named([name])
    samples.z = torch.zeros(3, samples.z.shape[1])
    assert samples.scores(score).isfinite().all()


@pytest.mark.parametrize("name", ["ash", "ash:percentile=50:variant=b", "scale", "react", "dice"])
def test_a_permutation_of_the_features_changes_nothing(samples: Samples, name: str) -> None:
    (score,), (again,) = scores_named([name]), scores_named([name])
    order = torch.randperm(samples.z.shape[1], generator=torch.Generator().manual_seed(3))
    expected = samples.scores(score)
    samples.features, samples.z = samples.features[:, order], samples.z[:, order]
    with torch.no_grad():
        samples.head.weight.copy_(samples.head.weight[:, order].clone())
    torch.testing.assert_close(samples.scores(again), expected, rtol=1e-5, atol=1e-5)


def test_a_head_without_a_bias() -> None:
    head = nn.Linear(2, 2, bias=False)
    z = torch.rand(4, 2)
    dice = DICE(percentile=0)
    dice.fit(z, head(z), torch.zeros(4, dtype=torch.long), head)
    assert dice.score(z, head(z)).shape == (4,)


def test_what_is_not_fitted_or_out_of_range_is_refused() -> None:
    for score in (ReAct(), ASH(), SCALE(), DICE()):
        with pytest.raises(NotFittedError, match="call fit"):
            score.score(torch.ones(1, 2), torch.ones(1, 2))
    for spec in ("react:percentile=100", "ash:percentile=-1", "ash:variant=x", "dice:percentile=nan"):
        with pytest.raises(ValueError, match="must"):
            scores_named([spec])
