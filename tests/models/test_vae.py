"""VAE: divergence and bound against closed forms, the bound's points, draws, and signs of the scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.conftest import Trained
from tests.models.test_autoencoder import Affine, affine_decoder, curve, fit
from uncertainty_est.building import build_data
from uncertainty_est.errors import ConfigError
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.models.vae import VAE, kl_to_standard_normal, posterior_points
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator

DIM, LATENT, BETA = 5, 3, 0.4


def linear_gaussian(directions: Tensor, beta: float = BETA) -> tuple[VAE, MultivariateNormal]:
    r"""A model :math:`x = W z + b + noise` with the best diagonal posterior, and its density of x.

    Probabilistic PCA (Tipping and Bishop, 1999): with :math:`s^2 = \beta / 2` and :math:`M = W^T W + s^2 I` the
    posterior is :math:`N(M^{-1} W^T (x - b), s^2 M^{-1})`. Of all diagonal ones, that of variances
    :math:`s^2 / M_{ii}` is nearest.
    """
    dim, latent_dim = directions.shape
    method = VAE([dim], partial(Affine, dim), affine_decoder, latent_dim, beta)
    noise = beta / 2
    offset = torch.linspace(-1, 1, dim)
    precision = directions.T @ directions + noise * torch.eye(latent_dim)
    to_mean = torch.linalg.solve(precision, directions.T)
    log_sigma = (noise / precision.diagonal()).log() / 2
    with torch.no_grad():
        method.decoder.weight.copy_(directions)
        method.decoder.bias.copy_(offset)
        method.network.head.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        method.network.head.bias.copy_(torch.cat([-to_mean @ offset, log_sigma]))
    covariance = directions @ directions.T + noise * torch.eye(dim)
    return method, MultivariateNormal(offset.double(), covariance.double())


def inputs(n: int = 50) -> Tensor:
    return 2 * torch.randn(n, DIM, generator=torch.Generator().manual_seed(1))


def directions(orthogonal: bool) -> Tensor:
    w = torch.randn(DIM, LATENT, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(w).Q * torch.tensor([2.0, 1.0, 0.5]) if orthogonal else w


def small_vae(latent_dim: int = 2) -> VAE:
    return VAE(
        [4], partial(FC, [4], hidden_dims=[32, 32]), partial(FCGenerator, hidden_dims=[32, 32]), latent_dim, 0.01
    )


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_golden_divergences(dim: int) -> None:
    zero = torch.zeros(3, dim)
    assert torch.equal(kl_to_standard_normal(zero, zero), torch.zeros(3))
    torch.testing.assert_close(kl_to_standard_normal(zero + 1, zero), torch.full((3,), 0.5 * dim))


def test_the_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    mu, log_sigma = 3 * torch.randn(2, 40, 6, dtype=torch.float64)
    q = Independent(Normal(mu, log_sigma.exp()), 1)
    p = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    torch.testing.assert_close(kl_to_standard_normal(mu, log_sigma), kl_divergence(q, p))


def test_the_divergence_keeps_its_digits_near_the_prior() -> None:
    log_sigma = torch.full((1, 1), 1e-3)
    expected = (math.expm1(2e-3) - 2e-3) / 2
    # Without expm1 float32 would leave two digits.
    assert kl_to_standard_normal(torch.zeros(1, 1), log_sigma).item() == pytest.approx(expected, rel=1e-3)


def test_the_bound_is_the_density_where_the_posterior_is_exact() -> None:
    method, density = linear_gaussian(directions(orthogonal=True))
    x = inputs()
    torch.testing.assert_close(method.elbo(x).double(), density.log_prob(x.double()), atol=1e-4, rtol=1e-5)


def test_the_bound_is_below_the_density_by_the_divergence_of_the_posteriors() -> None:
    w = directions(orthogonal=False)
    method, density = linear_gaussian(w)
    with torch.no_grad():
        method.network.head.weight += 0.1
        method.network.head.bias -= 0.2
    x = inputs()
    mu, log_sigma = method.posterior(x)
    precision = w.T @ w + BETA / 2 * torch.eye(LATENT)
    exact = MultivariateNormal(
        torch.linalg.solve(precision, w.T @ (x - density.mean.float()).T).T, precision_matrix=precision / (BETA / 2)
    )
    gap = kl_divergence(MultivariateNormal(mu, scale_tril=torch.diag_embed(log_sigma.exp())), exact)
    bound, log_p = method.get_ood_scores(x)["ELBO"].double(), density.log_prob(x.double())
    assert gap.min() > 0.1
    assert (bound < log_p).all()
    torch.testing.assert_close(log_p - bound, gap.detach().double(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_validation_loss_is_the_bound_in_other_units(beta: float) -> None:
    method, _ = linear_gaussian(directions(orthogonal=False), beta)
    x = inputs()
    parts, probs = method.validate_batch({"id": (x, torch.zeros(len(x)))})
    assert probs is None
    expected = -beta / DIM * (method.elbo(x).mean() + DIM / 2 * math.log(math.pi * beta))
    torch.testing.assert_close(parts["rec"] + parts["kl"], expected)


def test_parts_of_the_loss_have_the_papers_scale() -> None:
    method, _ = linear_gaussian(directions(orthogonal=True))
    x = inputs()
    with torch.no_grad():
        method.network.head.bias[LATENT:] = -50.0  # clamped to e^-7: next to no noise
    mu, log_sigma = method.posterior(x)
    parts = method.loss({"id": (x, torch.zeros(len(x)))})
    squared = (x - method.decode(mu)).square()
    assert parts["rec"].item() == pytest.approx(squared.mean().item(), rel=0.01)  # mean over dimensions and batch
    kl = kl_to_standard_normal(mu, log_sigma)
    torch.testing.assert_close(parts["kl"], BETA / DIM * kl.mean())


def test_the_training_loss_is_the_validation_loss_on_average() -> None:
    """Of one input many times, so that there are as many draws; five standard errors."""
    torch.manual_seed(0)
    method, _ = linear_gaussian(directions(orthogonal=False))
    x = inputs(1)
    batch = {"id": (x.expand(40_000, DIM), torch.zeros(40_000))}
    exact, drawn = method.validate_batch({"id": (x, torch.zeros(1))})[0], method.loss(batch)
    torch.testing.assert_close(drawn["kl"], exact["kl"])
    assert drawn["rec"].item() == pytest.approx(exact["rec"].item(), rel=5 * 1.5 / 200)


@pytest.mark.parametrize(("dim", "num_points"), [(1, 2), (3, 4), (5, 8), (7, 8), (32, 64)])
def test_enough_points_have_the_priors_mean_and_covariance(dim: int, num_points: int) -> None:
    points = posterior_points(dim, num_points)
    assert points.shape == (num_points, dim)
    torch.testing.assert_close(points.mean(0), torch.zeros(dim))
    torch.testing.assert_close(points.T @ points / num_points, torch.eye(dim))


def test_few_points_have_its_mean_and_variances() -> None:
    points = posterior_points(20, 4)
    assert torch.equal(points.abs(), torch.ones(4, 20))
    torch.testing.assert_close(points.mean(0), torch.zeros(20))


def test_training_draws_and_scoring_does_not() -> None:
    torch.manual_seed(0)
    method, x = small_vae(), curve(20, seed=0)
    batch = {"id": (x, torch.zeros(20))}
    first, second = method.loss(batch)["rec"], method.loss(batch)["rec"]
    assert first != second
    before = torch.get_rng_state()
    scores, parts = method.get_ood_scores(x), method.validate_batch(batch)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert method.validate_batch(batch)[0]["rec"] == parts["rec"]
    order = torch.randperm(20)
    for name, score in method.get_ood_scores(x[order]).items():
        torch.testing.assert_close(score, scores[name][order])


def test_samples_have_the_models_mean_and_covariance() -> None:
    w = directions(orthogonal=False)
    method, density = linear_gaussian(w)
    n = 50_000
    x = method.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, DIM)
    torch.testing.assert_close(x.mean(0), density.mean.float(), atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), w @ w.T, atol=0.1, rtol=0)  # the likelihood's noise is not in it


def test_samples_come_from_the_generator_alone() -> None:
    method = VAE([4], partial(FC, [4]), partial(FCGenerator, batch_norm=True), 2).train()
    assert method.can_sample
    before = torch.get_rng_state()
    first, again, other = (method.sample(6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert method.decoder.training
    assert not first.requires_grad


def test_what_lies_off_the_data_scores_lower() -> None:
    torch.manual_seed(0)
    method = small_vae(latent_dim=1)
    fit(method, curve(300, seed=0), steps=400)
    data, off = curve(500, seed=1), curve(500, seed=2) + torch.tensor([0.0, 1.0, 0.0, 1.0])
    scores, scores_off = method.get_ood_scores(data), method.get_ood_scores(off)
    assert next(iter(scores)) == "ELBO"
    for name in ("ELBO", "Reconstruction"):
        assert ood_metrics(scores[name], scores_off[name])["AUROC"] > 0.99, name


def test_the_latent_norm_is_least_for_the_middle_of_the_data() -> None:
    method, density = linear_gaussian(directions(orthogonal=True))
    far = torch.tensor([0.0, 1.0, 10.0]).view(3, 1)
    scores = method.get_ood_scores(density.mean.float() + far * directions(orthogonal=True)[:, 0])["Latent norm"]
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[2] < scores[1] < scores[0]
    torch.testing.assert_close(scores[2], 10 * scores[1])


@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_gradients_and_scores_are_finite_at_extreme_outputs(scale: float) -> None:
    torch.manual_seed(0)
    method, x = small_vae(), curve(20, seed=0)
    with torch.no_grad():
        method.network.head.weight *= scale
    parts = method.loss({"id": (x, torch.zeros(20))})
    torch.stack(list(parts.values())).sum().backward()
    assert all(part.isfinite() for part in parts.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    prediction = method._predict(x)
    assert all(score.isfinite().all() for score in prediction.scores.values())


def test_a_finished_run_hands_over_encoder_and_decoder() -> None:
    done, fresh, x = small_vae(), small_vae(), curve(20, seed=0)
    fresh.init_from([done.state_dict()])
    for name, score in done.get_ood_scores(x).items():
        assert torch.equal(fresh.get_ood_scores(x)[name], score)
    with pytest.raises(ConfigError, match=r"fixed\.init_from: the run's weights do not fit the network of VAE"):
        small_vae(3).init_from([done.state_dict()])


def test_values_that_make_no_sense_are_refused() -> None:
    make = partial(VAE, [4], partial(FC, [4]), FCGenerator)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        make(beta=0)
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got -1"):
        make(latent_dim=-1)
    for number in (0, 1, 6):
        with pytest.raises(ValueError, match=f"num_points must be a power of two, at least 2, got {number}"):
            make(num_points=number)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["img_vae"])  # a parameter, so that processes share trained models
def test_its_own_digits_look_more_like_digits_than_noise_does(model: str, trained: Callable[[str], Trained]) -> None:
    run = trained(model)
    method, data = run.run.method, build_data(run.fixed)
    assert isinstance(method, VAE)
    data.setup("test")
    digits = torch.cat([x for x, _ in data.id_test_loader()])
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(1000, 1, 8, 8, generator=generator) - 1
    drawn = method.sample(1000, generator)
    bounds = {
        name: method.get_ood_scores(x)["ELBO"] for name, x in (("digits", digits), ("noise", noise), ("drawn", drawn))
    }
    assert ood_metrics(bounds["digits"], bounds["noise"])["AUROC"] > 0.95
    assert ood_metrics(bounds["drawn"], bounds["noise"])["AUROC"] > 0.95
    # The mean image of the draws is that of the digits: on average, pixels differ by a tenth of their range or less.
    assert (drawn.mean(0) - digits.mean(0)).abs().mean() < 0.2
