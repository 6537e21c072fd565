"""Gibbs with gradients against Boltzmann distributions that can be summed up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.samplers.gibbs import GibbsWithGradients


def one_hot(categories: Tensor, v: int = 3) -> Tensor:
    return F.one_hot(categories, v).float()


def empirical(log_density, steps: int = 40, chains: int = 20_000) -> Tensor:  # type: ignore[no-untyped-def]
    """Shares ``[3, 3]`` of the states of two sites with three categories."""
    generator = torch.Generator().manual_seed(0)
    start = one_hot(torch.randint(3, (chains, 2), generator=generator))
    chain = GibbsWithGradients(steps)(log_density, start, generator)
    assert torch.equal(chain.x.sum(-1), torch.ones(chains, 2)), "still one-hot"
    assert 0 < float(chain.statistics["acceptance"]) < 1
    first, second = chain.x.argmax(-1).T
    return torch.bincount(3 * first + second, minlength=9).view(3, 3) / chains


TABLE = torch.tensor([[0.0, 2.0, -1.0], [1.0, -2.0, 0.5], [2.5, 0.0, -0.5]])


def bilinear(x: Tensor) -> Tensor:
    return torch.einsum("bi,ij,bj->b", x[:, 0], TABLE, x[:, 1])


def misleading(x: Tensor) -> Tensor:
    """Equal to `bilinear` where x is one-hot, with gradients that have little to do with its differences."""
    return bilinear(x.square()) + 3 * (x * (1 - x)).sum((1, 2)) + torch.sin(3.141592653589793 * x[:, 0, 0])


def test_it_samples_the_boltzmann_distribution_of_a_table() -> None:
    exact = TABLE.flatten().softmax(0).view(3, 3)
    # Total variation between 20,000 draws and their law is about 0.007.
    assert float((empirical(bilinear) - exact).abs().sum() / 2) < 0.015


def test_it_is_exact_with_a_gradient_that_misleads() -> None:
    exact = TABLE.flatten().softmax(0).view(3, 3)
    assert float((empirical(misleading, steps=80) - exact).abs().sum() / 2) < 0.015


def test_independent_sites_have_their_softmax_as_marginals() -> None:
    """Five sites and four categories, F linear: the first-order estimate of the gain is exact."""
    torch.manual_seed(0)
    weight = torch.randn(5, 4)
    generator = torch.Generator().manual_seed(1)
    start = one_hot(torch.randint(4, (10_000, 5), generator=generator), 4)
    chain = GibbsWithGradients(80)(lambda x: (x * weight).sum((1, 2)), start, generator)
    torch.testing.assert_close(chain.x.mean(0), weight.softmax(-1), atol=0.02, rtol=0)


def test_every_step_costs_one_evaluation() -> None:
    calls = []

    def log_density(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum((1, 2))

    start = one_hot(torch.zeros(2, 4, dtype=torch.long))
    GibbsWithGradients(5)(log_density, start)
    assert len(calls) == 6
    still = GibbsWithGradients(0)(log_density, start)
    assert torch.equal(still.x, start)
    assert still.statistics == {}


def test_the_generator_decides_and_the_start_is_left_alone() -> None:
    start = one_hot(torch.zeros(50, 2, dtype=torch.long))
    kept = start.clone()
    first, second = (GibbsWithGradients(4)(bilinear, start, torch.Generator().manual_seed(2)).x for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(start, kept)
    assert not torch.equal(first, start)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 0"):
        GibbsWithGradients(-1)
