"""Spherical mixtures: against torch.distributions and scikit-learn, in many dimensions, and their fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from uncertainty_est.densities.pca_metric import PCAMetric
from uncertainty_est.densities.spherical_mixture import SphericalMixture
from uncertainty_est.errors import ConfigError, NotFittedError


def some_mixture(components: int, dim: int, seed: int = 0) -> SphericalMixture:
    """Random means, variances and weights."""
    generator = torch.Generator().manual_seed(seed)
    mixture = SphericalMixture(components, dim)
    with torch.no_grad():
        mixture.mean.normal_(generator=generator)
        mixture.log_var.uniform_(-1.5, 1, generator=generator)
        mixture.log_weight.copy_(torch.rand(components, generator=generator).double().log_softmax(0))
        mixture.fitted.fill_(True)
    return mixture


def as_distribution(mixture: SphericalMixture) -> MixtureSameFamily:
    scale = (mixture.log_var / 2).exp()[:, None].expand_as(mixture.mean)
    return MixtureSameFamily(Categorical(logits=mixture.log_weight), Independent(Normal(mixture.mean, scale), 1))


def clusters(n: int = 600, dim: int = 3, seed: int = 0) -> Tensor:
    """Four clusters of different widths and sizes."""
    generator = torch.Generator().manual_seed(seed)
    centre = 4 * torch.randn(4, dim, generator=generator)
    label = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), n, replacement=True, generator=generator)
    width = torch.tensor([0.3, 1.0, 0.6, 2.0])[label, None]
    return centre[label] + width * torch.randn(n, dim, generator=generator)


@pytest.mark.parametrize("dim", [1, 2, 784, 3072])
def test_log_prob_is_that_of_torch_distributions(dim: int) -> None:
    mixture = some_mixture(7, dim)
    z = torch.randn(20, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixture.log_prob(z), as_distribution(mixture).log_prob(z), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("dim", [784, 3072])
def test_far_away_and_in_many_dimensions_nothing_underflows(dim: int) -> None:
    mixture = some_mixture(7, dim)
    z = torch.tensor([1.0, 1e3, 1e9])[:, None].expand(3, dim).clone().requires_grad_()
    log_prob = mixture.log_prob(z)
    assert log_prob.isfinite().all()
    assert log_prob[0] < -700  # its exponential is zero or close to it
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert gradient.isfinite().all()
    assert (gradient[1:] < 0).all()


def test_gradients() -> None:
    mixture = some_mixture(4, 3)
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def of(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        return torch.func.functional_call(mixture, {"mean": mean, "log_var": log_var}, z, strict=False)

    mixture.forward = mixture.log_prob  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(of, (z, mixture.mean, mixture.log_var))


@pytest.mark.parametrize("whitening", ["covariance", "singular", "none"])
def test_it_integrates_to_one_over_the_plane_also_in_the_metric(whitening: str) -> None:
    x = clusters(dim=2) @ torch.tensor([[1.0, 0.4], [0.0, 0.3]])
    metric, mixture = PCAMetric(2, whitening), SphericalMixture(5, 2, weights="learned", variances="each")
    metric.fit(x)
    mixture.fit(metric.whiten(x))
    sides = [
        torch.linspace(float(low) - 6, float(high) + 6, 1200) for low, high in zip(x.amin(0), x.amax(0), strict=True)
    ]
    grid = torch.cartesian_prod(*sides)
    cell = float((sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0]))
    density = (mixture.log_prob(metric.whiten(grid)) - metric.half_log_det()).detach().exp()
    assert float(density.sum()) * cell == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_em_never_loses_likelihood(weights: str) -> None:
    z = clusters()
    mixture = SphericalMixture(6, 3, weights=weights)
    least_variance = mixture.initialise(z)
    likelihoods = [mixture.em_step(z, least_variance) for _ in range(30)]
    gains = np.diff(likelihoods)
    assert (gains >= -1e-12).all()
    assert gains[0] > 1e-3
    # What a step returns is the likelihood of the mixture that it starts from.
    assert mixture.log_prob(z).mean().item() == pytest.approx(mixture.em_step(z, least_variance), rel=1e-12)


def test_em_ends_where_scikit_learns_does() -> None:
    z = clusters()
    mixture = SphericalMixture(4, 3, weights="learned", variances="each")
    least_variance = mixture.initialise(z)
    start = mixture.mean.detach().clone()
    for _ in range(300):
        mixture.em_step(z, least_variance)
    reference = GaussianMixture(4, covariance_type="spherical", tol=1e-12, max_iter=1000, reg_covar=0, means_init=start)
    reference.fit(z.double().numpy())
    order, expected = mixture.mean[:, 0].argsort(), reference.means_[:, 0].argsort()
    np.testing.assert_allclose(mixture.mean[order].detach(), reference.means_[expected], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixture.log_var[order].detach().exp(), reference.covariances_[expected], rtol=1e-3)
    np.testing.assert_allclose(mixture.log_weight[order].exp(), reference.weights_[expected], rtol=1e-3)


def test_parts_of_the_data_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    z, mixtures = clusters(), []
    for rows in (8192, 7):
        monkeypatch.setattr("uncertainty_est.densities.spherical_mixture._ROWS", rows)
        mixtures.append(SphericalMixture(5, 3))
        mixtures[-1].fit(z)
    torch.testing.assert_close(mixtures[0].mean, mixtures[1].mean, rtol=1e-9, atol=1e-9)


def test_uniform_weights_and_pooled_variances() -> None:
    z = clusters()
    each, pooled = SphericalMixture(4, 3, variances="each"), SphericalMixture(4, 3)
    each.fit(z)
    pooled.fit(z)
    torch.testing.assert_close(pooled.log_var.exp(), each.log_var.exp().mean().expand(4))
    assert each.log_var.std() > 0.1
    assert torch.equal(pooled.log_weight, torch.full((4,), -math.log(4), dtype=torch.float64))


def test_the_fit_draws_from_no_global_generator_and_is_the_same_again() -> None:
    z, mixtures = clusters(), [SphericalMixture(5, 3), SphericalMixture(5, 3)]
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for mixture in mixtures:
        mixture.fit(z, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(mixtures[0].mean, mixtures[1].mean)


def test_few_distinct_items_leave_a_finite_density() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat(20, 1)
    mixture = SphericalMixture(6, 2, weights="learned", variances="each")
    mixture.fit(z)
    assert mixture.log_prob(z).isfinite().all()
    assert mixture.log_weight.exp().sum().item() == pytest.approx(1)


def test_casts_of_a_parent_leave_float64_and_training_goes_on() -> None:
    mixture = some_mixture(3, 2)
    expected = mixture.mean.detach().clone()
    torch.nn.ModuleList([mixture]).to(torch.bfloat16)
    assert torch.equal(mixture.mean, expected)
    assert isinstance(mixture.mean, torch.nn.Parameter)
    optimizer = torch.optim.Adam(mixture.parameters(), lr=1e-2)
    mixture.log_prob(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(mixture.mean, expected)


def test_refusals() -> None:
    with pytest.raises(NotFittedError, match="SphericalMixture is not fitted"):
        SphericalMixture(2, 3).log_prob(torch.zeros(1, 3))
    with pytest.raises(ConfigError, match=r"num_components: 10 components cannot be fitted to 9 items"):
        SphericalMixture(10, 3).fit(torch.randn(9, 3))
    with pytest.raises(ValueError, match=r"z must be \[N, 3\], got \[9, 2\]"):
        SphericalMixture(2, 3).fit(torch.randn(9, 2))
    with pytest.raises(ValueError, match="must be finite"):
        SphericalMixture(2, 3).fit(torch.full((9, 3), torch.inf))
    with pytest.raises(ValueError, match="variances must be one of pooled, each, got 'all'"):
        SphericalMixture(2, 3, variances="all")
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        SphericalMixture(0, 3)
