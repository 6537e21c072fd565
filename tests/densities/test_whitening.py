"""Distances by float32 products: as good as float64 where they are used, and not used where they are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from uncertainty_est.densities import whitening
from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics
from uncertainty_est.densities.whitening import TOLERANCE, Whitening

C, D, N = 3, 24, 4000


def fitted(spread: Tensor, jitter: float = 0.0) -> ClassGaussians:
    """Three Gaussians with standard deviations ``spread: [D]`` along random axes."""
    generator = torch.Generator().manual_seed(1)
    axes, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    z = (torch.randn(N, D, generator=generator, dtype=torch.float64) * spread) @ axes.T
    y = torch.arange(N) % C
    z += 3 * torch.randn(C, D, generator=generator, dtype=torch.float64)[y]
    statistics = GaussianStatistics(C, D)
    statistics.update(z, y)
    density = ClassGaussians(C, D, jitter)
    density.fit(statistics)
    return density


def inputs(density: ClassGaussians) -> Tensor:
    """Features in, around and far from the classes, float32."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(64, D, generator=generator, dtype=torch.float64)
    near = density.mean[0] + noise @ density.scale_tril[0].T
    return torch.cat([near, noise, 1e4 * noise, 1e30 * noise]).float()


def test_well_shaped_covariances_take_float32_products() -> None:
    density = fitted(torch.linspace(0.3, 2, D, dtype=torch.float64))
    z = inputs(density)
    ours, exact = density.log_prob(z), density.log_prob(z.double())
    assert not torch.equal(ours, exact)
    assert ours.dtype == torch.float64 and ours.isfinite().all()
    products = Whitening(density.mean, density.scale_tril)
    assert products.is_exact
    distances = products.distances(z.double() - density.mean.unsqueeze(1), 0)
    reference = density._squared_distances(z.double(), None).T
    assert ((distances - reference).abs() / reference).max() < TOLERANCE


def test_nearly_singular_covariances_take_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = torch.logspace(-5, 1, D, dtype=torch.float64)
    density = fitted(spread)
    z = inputs(density)
    assert not Whitening(density.mean, density.scale_tril).is_exact
    assert torch.equal(density.log_prob(z), density.log_prob(z.double()))
    # What it would have cost: float32 products are wrong here by more than is allowed, and the trial shows it, too.
    monkeypatch.setattr(whitening, "_MIN_UNEXPLAINED", 0.0)
    assert not Whitening(density.mean, density.scale_tril).is_exact
    centred = z[:64].double() - density.mean.unsqueeze(1)
    wrong = Whitening(density.mean, density.scale_tril).distances(centred, 0)
    reference = density._squared_distances(z[:64].double(), None).T
    assert ((wrong - reference).abs() / reference).max() > TOLERANCE


def test_features_of_different_scales_are_no_hindrance() -> None:
    density = fitted(torch.ones(D, dtype=torch.float64))
    scales = torch.logspace(-4, 4, D, dtype=torch.float64)
    density.scale_tril.mul_(scales[:, None])
    density.mean.mul_(scales)
    assert Whitening(density.mean, density.scale_tril).is_exact


def test_gradients_and_fewer_digits_on_demand_take_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    density = fitted(torch.linspace(0.3, 2, D, dtype=torch.float64))
    z = inputs(density)
    exact = density.log_prob(z.double())
    assert torch.equal(density.log_prob(z.clone().requires_grad_()), exact)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert torch.equal(density.log_prob(z), exact)


def test_autocast_does_not_reach_the_products() -> None:
    density = fitted(torch.linspace(0.3, 2, D, dtype=torch.float64))
    z = inputs(density)
    expected = density.log_prob(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(density.log_prob(z), expected)


def test_factors_follow_the_state() -> None:
    density, other = fitted(torch.full((D,), 1.0).double()), fitted(torch.full((D,), 2.0).double())
    z = inputs(density)
    before = density.log_prob(z)
    again = copy.deepcopy(density)
    again.load_state_dict(other.state_dict())
    assert torch.equal(again.log_prob(z), other.log_prob(z))
    assert torch.equal(density.log_prob(z), before)
    assert density.state_dict().keys() == ClassGaussians(C, D).state_dict().keys()
