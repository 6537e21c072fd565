"""The generator's density and the estimate of its entropy's gradient, against closed forms and quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.networks.generator import FCGenerator, ResNetGenerator
from uncertainty_est.samplers.vera import Draw, ImportanceSampling, LatentGenerator

# g(h) = W h, sigma = 0.3: H = ln det(2 pi e S) / 2 and dH/dW = S^-1 W with S = W W^T + sigma^2 I.
W = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
SIGMA = 0.3
ENTROPY = 3.5877555494246915
GRADIENT = torch.tensor([[0.912824175334, 0.010043297773], [-0.223184394947, 0.486541980985]])


class Linear(nn.Module):
    def __init__(self, latent_dim: int, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(W.clone())

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight.T


class Bent(nn.Module):
    """g(h) = a tanh(h) + h / 2, one-dimensional."""

    def __init__(self, latent_dim: int, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.5))

    def forward(self, h: Tensor) -> Tensor:
        return self.a * h.tanh() + h / 2


class Constant(nn.Module):
    def __init__(self, latent_dim: int, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(list(data_shape)))

    def forward(self, h: Tensor) -> Tensor:
        return self.value.expand(len(h), *self.value.shape)


def linear() -> LatentGenerator:
    return LatentGenerator(Linear, [2], min_sigma=SIGMA, max_sigma=SIGMA)


def surrogate(c: Tensor, draw: Draw) -> Tensor:
    """Scalar whose gradient is the estimate of the entropy's."""
    return (c * draw.x).flatten(1).sum(1).mean()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_golden_values_are_those_of_the_closed_form() -> None:
    w = W.double().requires_grad_()
    covariance = w @ w.T + SIGMA**2 * torch.eye(2, dtype=torch.float64)
    entropy = torch.logdet(2 * math.pi * math.e * covariance) / 2
    assert entropy.item() == pytest.approx(ENTROPY, abs=1e-9)
    torch.testing.assert_close(torch.autograd.grad(entropy, w)[0].float(), GRADIENT)


def test_samples_have_the_closed_forms_covariance() -> None:
    x = linear().draw(100_000, seeded()).x
    torch.testing.assert_close(x.T.cov(), W @ W.T + SIGMA**2 * torch.eye(2), atol=0.05, rtol=0)


def test_a_wide_proposal_gives_each_samples_own_score() -> None:
    """-grad ln q(x) = S^-1 x for a linear generator."""
    q, sampler = linear(), ImportanceSampling(2, num_samples=4000, init_scale=0.6, max_batch=200_000)
    draw = q.draw(300, seeded())
    c, notes = sampler(q, draw, seeded(1))
    exact = torch.linalg.solve(W @ W.T + SIGMA**2 * torch.eye(2), draw.x.T).T
    assert (c - exact).abs().mean() < 0.15
    assert torch.corrcoef(torch.stack([c.flatten(), exact.flatten()]).detach())[0, 1] > 0.98
    assert 50 < notes["ess"] < 4000


@pytest.mark.parametrize(
    ("num_samples", "scale", "expected", "atol"),
    [
        (400, 0.6, GRADIENT, 0.04),
        # Too narrow a proposal does not find the posterior, and underestimates.
        (20, 0.1, torch.tensor([[0.15, 0.05], [-0.01, 0.22]]), 0.03),
    ],
)
def test_the_entropys_gradient_of_a_linear_generator(
    num_samples: int, scale: float, expected: Tensor, atol: float
) -> None:
    q, sampler = linear(), ImportanceSampling(2, num_samples, scale, max_batch=500_000)
    draw = q.draw(10_000, seeded())
    c, _ = sampler(q, draw, seeded(1))
    surrogate(c, draw).backward()
    grad = q.network.weight.grad
    assert isinstance(grad, Tensor)
    torch.testing.assert_close(grad, expected, atol=atol, rtol=0)


def entropy_by_quadrature(a: float, sigma: float) -> float:
    h = torch.linspace(-7, 7, 2001, dtype=torch.float64)
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    prior = torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi) * (h[1] - h[0])
    mean = a * h.tanh() + h / 2
    q = (torch.exp(-(((x[:, None] - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))) @ prior
    return float(-(torch.xlogy(q, q)).sum() * (x[1] - x[0]))


def test_the_entropys_gradients_of_a_bent_generator_are_finite_differences() -> None:
    sigma, step = 0.3, 1e-4
    q = LatentGenerator(Bent, [1], min_sigma=sigma, max_sigma=sigma)
    draw = q.draw(15_000, seeded())
    c, _ = ImportanceSampling(1, 100, init_scale=0.8, max_batch=500_000)(q, draw, seeded(1))
    surrogate(c, draw).backward()
    of_a = (entropy_by_quadrature(1.5 + step, sigma) - entropy_by_quadrature(1.5 - step, sigma)) / (2 * step)
    above, below = (entropy_by_quadrature(1.5, sigma * math.exp(d)) for d in (step, -step))
    a, log_sigma = q.network.a.grad, q.log_sigma.grad
    assert isinstance(a, Tensor) and isinstance(log_sigma, Tensor)
    assert a.item() == pytest.approx(of_a, abs=0.02)
    assert log_sigma.item() == pytest.approx((above - below) / (2 * step), abs=0.02)


def test_a_constant_generators_entropy_grows_with_ln_sigma_by_one_for_each_dimension() -> None:
    q = LatentGenerator(Constant, [2, 3], latent_dim=4)
    draw = q.draw(20_000, seeded())
    c, _ = ImportanceSampling(4, 3)(q, draw, seeded(1))
    torch.testing.assert_close(c, (draw.x.detach() - 1) / 0.01**2, rtol=1e-3, atol=0.1)
    surrogate(c, draw).backward()
    assert q.log_sigma.grad is not None
    assert q.log_sigma.grad.item() == pytest.approx(6, abs=0.1)


def test_estimates_do_not_depend_on_how_much_goes_through_the_network_at_once() -> None:
    q = linear()
    draw = q.draw(25, seeded())
    whole, one_by_one = (ImportanceSampling(2, 20, max_batch=n)(q, draw, seeded(1))[0] for n in (4096, 1))
    torch.testing.assert_close(whole, one_by_one)


def test_the_estimate_has_no_gradient_and_leaves_no_trace() -> None:
    q = LatentGenerator(lambda **kw: FCGenerator(**kw, hidden_dims=[8], batch_norm=True), [3])
    sampler = ImportanceSampling(3)
    draw = q.draw(16)
    state = {name: value.clone() for name, value in q.state_dict().items()}
    c, notes = sampler(q, draw)
    assert c.shape == draw.x.shape
    assert not c.requires_grad and not notes["ess"].requires_grad
    assert draw.x.requires_grad
    assert all(m.training for m in q.modules())
    assert all(p.grad is None for p in [*q.parameters(), *sampler.parameters()])
    for name, value in q.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("make", [FCGenerator, ResNetGenerator])
def test_batch_statistics_are_part_of_the_function_that_is_inverted(make: type[nn.Module]) -> None:
    """With batch norm in training mode, g(h) of a sample's own h must be what the sample was made from."""
    options = {"batch_norm": True} | ({"features": 4} if make is ResNetGenerator else {"hidden_dims": [8, 8]})
    q = LatentGenerator(lambda **kw: make(**kw, **options), [1, 8, 8], latent_dim=5)
    draw = q.draw(32, seeded())
    assert len(draw.statistics) > 0
    generator = seeded()
    torch.randn(32, 5, generator=generator)  # h
    noise = torch.randn(draw.x.shape, generator=generator)
    torch.testing.assert_close(q.decode(draw.h, draw.statistics) + 0.01 * noise, draw.x, atol=1e-5, rtol=1e-5)
    # Row by row: what else goes through at the same time does not matter.
    torch.testing.assert_close(
        q.decode(draw.h[:3], draw.statistics), q.decode(draw.h, draw.statistics)[:3], atol=1e-5, rtol=1e-5
    )
    q.eval()
    assert q.draw(4).statistics == {}


def test_the_proposals_loss_is_least_at_the_posteriors_width() -> None:
    """For a linear generator: s_i^-2 = P_ii, with the posterior's precision P = I + W^T W / sigma^2."""
    q, sampler = linear(), ImportanceSampling(2)
    precision = torch.eye(2) + W.T @ W / SIGMA**2
    draw = q.draw(100_000, seeded())
    for scale in (0.1, 0.3):
        with torch.no_grad():
            sampler.log_scale.fill_(math.log(scale))
        (gradient,) = torch.autograd.grad(sampler.proposal_loss(q, draw, seeded(1)), sampler.log_scale)
        torch.testing.assert_close(gradient, scale**2 * precision.diag() - 1, atol=0.05, rtol=0)


def test_log_joint_is_the_joint_density_up_to_a_constant() -> None:
    q = linear()
    x, h = torch.randn(5, 2, generator=seeded()), torch.randn(5, 2, generator=seeded(1))
    expected = torch.distributions.Normal(0, 1).log_prob(h).sum(1)
    expected = expected + torch.distributions.Normal(h @ W.T, SIGMA).log_prob(x).sum(1)
    got = q.log_joint(x, h, {})
    torch.testing.assert_close(got - got[0], expected - expected[0])


def test_sigma_starts_from_its_lower_bound_and_stays_in_range() -> None:
    q = LatentGenerator(Constant, [2])
    assert q.log_sigma.item() == pytest.approx(math.log(0.01))
    for value, expected in ((-9.0, 0.01), (1.0, 0.3), (math.log(0.1), 0.1)):
        with torch.no_grad():
            q.log_sigma.fill_(value)
        q.clamp_sigma()
        assert q.log_sigma.exp().item() == pytest.approx(expected, rel=1e-5)


def test_draws_come_from_their_generator_alone() -> None:
    q, state = LatentGenerator(Constant, [2, 2]), torch.random.get_rng_state()
    first, second = q.draw(3, seeded(5)), q.draw(3, seeded(5))
    assert torch.equal(first.x, second.x)
    assert first.h.shape == (3, 4), "as many latent dimensions as numbers in an input"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_autocast_does_not_round_the_generator() -> None:
    q = LatentGenerator(lambda **kw: FCGenerator(**kw, hidden_dims=[8]), [3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        draw = q.draw(8, seeded())
        again = q.decode(draw.h, draw.statistics)
    assert draw.x.dtype == again.dtype == torch.float32
    torch.testing.assert_close(again, q.decode(draw.h, draw.statistics))


@pytest.mark.parametrize("bounds", [(0.0, 0.3), (0.3, 0.1)])
def test_bounds_that_are_no_range(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="min_sigma"):
        LatentGenerator(Constant, [2], None, *bounds)


@pytest.mark.parametrize(("num_samples", "scale"), [(0, 0.1), (20, 0.0)])
def test_numbers_that_are_not_positive(num_samples: int, scale: float) -> None:
    with pytest.raises(ValueError, match="num_samples and init_scale"):
        ImportanceSampling(2, num_samples, scale)
