"""Scores of logits: closed forms, and what shifts and permutations of the classes do."""

from __future__ import annotations

import math

import pytest
import torch

from tests.posthoc.conftest import Samples
from uncertainty_est.posthoc.base import scores_named
from uncertainty_est.posthoc.gradnorm import GradNorm
from uncertainty_est.posthoc.logits import GEN

ONE_TWO_THREE = torch.tensor([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("msp", 0.6652409557748218),
        ("max_logit", 3.0),
        ("energy", 3.4076059644443806),
        ("energy:temperature=2", 4.360539341283469),
        ("odin:temperature=1000", 0.3336667221666528),
        ("gen:gamma=1", -2 / 9 - 2 / 9 - 2 / 9),
    ],
)
def test_closed_forms(spec: str, expected: float) -> None:
    logits = torch.zeros(1, 3) if spec.startswith("gen") else ONE_TWO_THREE
    (score,) = scores_named([spec])
    assert score.score(torch.empty(1, 0), logits).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["msp", "entropy", "gen", "odin", "max_logit", "energy"])
def test_a_shift_changes_energies_alone_and_the_order_of_classes_nothing(name: str) -> None:
    logits = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (score,) = scores_named([name])
    value = score.score(logits, logits)
    shift = 2.5 if name in ("max_logit", "energy") else 0.0
    torch.testing.assert_close(score.score(logits, logits + 2.5), value + shift)
    torch.testing.assert_close(score.score(logits, logits[:, torch.randperm(6)]), value)


def test_gen_reads_the_largest_probabilities_and_keeps_digits_of_certain_ones() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    two = GEN(gamma=0.3, top=2).score(p, p.log().unsqueeze(0))
    assert two.item() == pytest.approx(-sum((q * (1 - q)) ** 0.3 for q in (0.5, 0.3)), rel=1e-12)
    # Of two classes at a gap g: p (1 - p) = e^-g / (1 + e^-g)^2, far below where 1 - p is 0 in float64.
    gap = torch.tensor([[0.0, 60.0]])
    expected = -2 * (math.exp(-60) / (1 + math.exp(-60)) ** 2) ** 0.1
    assert GEN().score(gap, gap).item() == pytest.approx(expected, rel=1e-9)
    assert GEN().score(gap, torch.tensor([[0.0, 1e4]])).isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradnorm_is_the_norm_of_the_gradient_of_the_last_layer(samples: Samples, temperature: float) -> None:
    expected = []
    for z in samples.z:
        log_probs = (samples.head(z) / temperature).log_softmax(-1)
        (gradient,) = torch.autograd.grad(-log_probs.mean(), samples.head.weight)
        expected.append(gradient.abs().sum())
    got = samples.scores(GradNorm(temperature))
    torch.testing.assert_close(got.float(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert GradNorm().score(samples.z, torch.zeros(len(samples.z), 4)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "spec", ["energy:temperature=0", "gen:gamma=0", "gen:gamma=2", "gen:top=0", "gradnorm:temperature=-1"]
)
def test_numbers_outside_their_range_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="must"):
        scores_named([spec])
