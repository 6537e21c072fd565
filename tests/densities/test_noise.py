"""Noise densities: values and draws against torch.distributions, fits, and what lies outside of a box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from uncertainty_est.densities.noise import DiagonalNormal, FullNormal, NoiseDensity, UniformBox


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data() -> Tensor:
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]])
    return torch.randn(5000, 3, generator=generator()) @ mixing + torch.tensor([1.0, -2.0, 0.5])


def fitted(noise: NoiseDensity, data: Tensor) -> NoiseDensity:
    noise.fit(data.split(700))
    return noise


def test_a_given_box_is_torchs_uniform_inside_and_practically_zero_outside() -> None:
    noise = UniformBox([2, 2], low=-1.0, high=3.0)
    x = noise.sample(200, generator())
    expected = Independent(Uniform(torch.full((2, 2), -1.0), torch.full((2, 2), 3.0)), 2)
    torch.testing.assert_close(noise.log_prob(x), expected.log_prob(x))
    outside = noise.log_prob(torch.full((1, 2, 2), 3.1))
    assert outside.isfinite()
    assert outside.exp() == 0


def test_a_fitted_box_holds_the_data_with_a_margin(data: Tensor) -> None:
    noise = fitted(UniformBox([3], margin=0.1), data)
    low, high = data.amin(0), data.amax(0)
    torch.testing.assert_close(noise.low, low - 0.1 * (high - low))
    torch.testing.assert_close(noise.high, high + 0.1 * (high - low))
    draws = noise.sample(20_000, generator())
    torch.testing.assert_close(draws.mean(0), (noise.low + noise.high) / 2, atol=0.1, rtol=0)
    assert (noise.log_prob(draws) == noise.log_prob(data)[0]).all()


@pytest.mark.parametrize("kind", [UniformBox, DiagonalNormal, FullNormal])
def test_a_feature_without_variance_leaves_the_density_finite(kind: type[NoiseDensity], data: Tensor) -> None:
    data[:, 1] = 4.0
    noise = fitted(kind([3]), data)
    assert noise.log_prob(data).isfinite().all()
    assert noise.log_prob(noise.sample(100, generator())).isfinite().all()


def test_given_moments_are_torchs_normal() -> None:
    noise = DiagonalNormal([2, 2], mean=0.5, std=2.0)
    x = noise.sample(200, generator())
    expected = Independent(Normal(torch.full((2, 2), 0.5), torch.full((2, 2), 2.0)), 2)
    torch.testing.assert_close(noise.log_prob(x), expected.log_prob(x))


def test_fitted_moments_are_the_datas(data: Tensor) -> None:
    noise = fitted(DiagonalNormal([3], scale=1.5), data)
    torch.testing.assert_close(noise.mean, data.mean(0))
    torch.testing.assert_close(noise.std, 1.5 * data.std(0, correction=0))
    draws = noise.sample(20_000, generator())
    torch.testing.assert_close(draws.std(0), noise.std, atol=0, rtol=0.03)


def test_the_full_normal_has_the_datas_covariance(data: Tensor) -> None:
    noise = fitted(FullNormal([3, 1, 1], jitter=0.0), data.view(-1, 3, 1, 1))
    expected = MultivariateNormal(data.double().mean(0), data.double().T.cov())
    x = noise.sample(30_000, generator())
    assert x.shape == (30_000, 3, 1, 1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(noise.log_prob(x), expected.log_prob(x.flatten(1).double()).float())
    torch.testing.assert_close(x.flatten(1).T.cov(), data.T.cov(), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "noise", [UniformBox([3], low=0.0, high=2.0), DiagonalNormal([3], mean=1.0, std=3.0)], ids=["box", "normal"]
)
def test_what_is_given_is_not_fitted(noise: NoiseDensity, data: Tensor) -> None:
    before = {name: value.clone() for name, value in noise.state_dict().items()}
    noise.fit([data])
    assert all(torch.equal(value, before[name]) for name, value in noise.state_dict().items())


@pytest.mark.parametrize("kind", [UniformBox, DiagonalNormal, FullNormal])
def test_fitted_state_survives_saving_and_draws_come_from_the_generator(kind: type[NoiseDensity], data: Tensor) -> None:
    noise, again = fitted(kind([3]), data), kind([3])
    again.load_state_dict(noise.state_dict(), strict=True)
    before = torch.random.get_rng_state()
    assert torch.equal(noise.sample(10, generator(3)), again.sample(10, generator(3)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(noise.sample(10, generator(3)), noise.sample(10, generator(4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformBox([2], low=0.0), "low and high must both be given or both be null"),
        (lambda: UniformBox([2], low=1.0, high=1.0), "low must be below high"),
        (lambda: UniformBox([2], margin=-0.1), "margin must be at least 0"),
        (lambda: DiagonalNormal([2], mean=0.0), "mean and std must both be given or both be null"),
        (lambda: DiagonalNormal([2], mean=0.0, std=0.0), "std and scale must be positive"),
        (lambda: FullNormal([2], jitter=-1.0), "jitter must be finite and at least 0"),
    ],
)
def test_senseless_arguments(make, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        make()
