"""Contrastive losses: golden values, binary cross-entropy, constants that cancel, and large logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.contrastive import conditional_noise_contrastive, noise_contrastive


def randn(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_golden_values() -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    certain = torch.tensor([-1e3], dtype=torch.float64)  # noise that costs nothing
    assert 2 * noise_contrastive(half, certain).item() == pytest.approx(0.4740769841801067, abs=1e-9)
    assert conditional_noise_contrastive(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(
        0.31326168751822286, abs=1e-9
    )


def test_a_model_of_the_noise_costs_ln_2() -> None:
    assert noise_contrastive(torch.zeros(7), torch.zeros(7)).item() == pytest.approx(math.log(2))
    assert conditional_noise_contrastive(torch.zeros(7)).mean().item() == pytest.approx(math.log(2))


def test_it_is_binary_cross_entropy_with_the_prior_of_the_samples() -> None:
    data, noise = randn(6, 0), randn(18, 1)
    logits = torch.cat([data, noise]) - math.log(3)
    labels = torch.cat([torch.ones(6), torch.zeros(18)]).double()
    torch.testing.assert_close(noise_contrastive(data, noise), F.binary_cross_entropy_with_logits(logits, labels))


def test_with_more_noise_the_least_is_still_at_the_normalised_density() -> None:
    """On one point of equal densities, the best F - ln p_n is zero, whatever the number of samples of noise."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    noise_contrastive(shift.expand(4), shift.expand(12)).backward()
    assert shift.grad.item() == pytest.approx(0, abs=1e-12)


def test_gradients_raise_data_and_lower_noise() -> None:
    data, noise = randn(6, 0).requires_grad_(), randn(6, 1).requires_grad_()
    noise_contrastive(data, noise).backward()
    assert (data.grad < 0).all()
    assert (noise.grad > 0).all()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_are_finite(size: float) -> None:
    logits = torch.full((3,), size, requires_grad=True)
    total = noise_contrastive(logits, logits) + conditional_noise_contrastive(logits).mean()
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()
