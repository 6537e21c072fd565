"""Chains sample the posterior that they are meant for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.samplers.test_vera import GRADIENT, SIGMA, W, linear, seeded, surrogate
from uncertainty_est.samplers.hmc import HMCSampling, hmc_step

PRECISION = torch.eye(2) + W.T @ W / SIGMA**2


def standard_normal(h: Tensor) -> Tensor:
    return -h.square().sum(1) / 2


def test_chains_from_anywhere_sample_the_posterior_of_a_linear_generator() -> None:
    q, x = linear(), torch.tensor([[1.0, -0.5]]).expand(4000, 2)
    h, generator = torch.zeros(4000, 2), seeded()
    for _ in range(60):
        h, _ = hmc_step(lambda at: q.log_joint(x, at, {}), h, torch.tensor(0.12), 5, generator)
    mean = torch.linalg.solve(PRECISION, W.T @ x[0] / SIGMA**2)
    covariance = PRECISION.inverse()
    torch.testing.assert_close(h.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(h.T.cov(), covariance, atol=0.004, rtol=0)


def test_chains_that_are_in_the_target_stay_in_it_at_any_step_size() -> None:
    h, generator = torch.randn(20_000, 3, generator=seeded()), seeded(1)
    after, probability = hmc_step(standard_normal, h, torch.tensor(1.2), 3, generator)
    assert 0.3 < probability.mean() < 0.95
    torch.testing.assert_close(after.T.cov(), torch.eye(3), atol=0.03, rtol=0)
    torch.testing.assert_close(after.mean(0), torch.zeros(3), atol=0.03, rtol=0)


def test_small_steps_are_accepted_and_large_ones_are_not() -> None:
    h = torch.randn(50, 3, generator=seeded())
    moved, probability = hmc_step(standard_normal, h, torch.tensor(1e-3), 5, seeded(1))
    assert probability.min() > 0.999
    assert (moved != h).any(1).all()
    stayed, probability = hmc_step(standard_normal, h, torch.tensor(50.0), 5, seeded(1))
    assert probability.max() < 1e-3
    assert torch.equal(stayed, h)


def test_each_chain_is_accepted_by_itself() -> None:
    """One of many, none, and those that leave all numbers: shapes and rows stay right."""
    h = torch.zeros(5, 2)

    def only_row_two(at: Tensor) -> Tensor:
        forbidden = torch.tensor([float("-inf"), float("nan"), 0.0, float("-inf"), float("nan")])
        return standard_normal(at) + torch.where(at.detach().square().sum(1) > 0, forbidden, 0.0)

    after, probability = hmc_step(only_row_two, h, torch.tensor(0.1), 3, seeded())
    assert ((after != h).any(1) == torch.tensor([False, False, True, False, False])).all()
    assert (probability[[0, 1, 3, 4]] == 0).all()
    assert after.isfinite().all()


def test_the_entropys_gradient_of_a_linear_generator() -> None:
    q, sampler = linear(), HMCSampling(2, adaptation=0.0)
    sampler.step_size.fill_(0.2)
    draw = q.draw(20_000, seeded())
    c, notes = sampler(q, draw, seeded(1))
    assert not c.requires_grad
    assert 0.7 < notes["acceptance"] < 0.9
    surrogate(c, draw).backward()
    grad = q.network.weight.grad
    assert isinstance(grad, Tensor)
    torch.testing.assert_close(grad, GRADIENT, atol=0.05, rtol=0)


def test_chains_that_do_not_move_give_no_gradient() -> None:
    """c is then the noise over sigma: right in the mean, but independent of the h that the sample's gradient has."""
    q, sampler = linear(), HMCSampling(2, adaptation=0.0)
    sampler.step_size.fill_(1e6)
    draw = q.draw(20_000, seeded())
    c, notes = sampler(q, draw, seeded(1))
    assert notes["acceptance"] == 0
    torch.testing.assert_close(c, (draw.x.detach() - draw.h @ W.T) / SIGMA**2, atol=1e-4, rtol=1e-4)
    surrogate(c, draw).backward()
    grad = q.network.weight.grad
    assert isinstance(grad, Tensor)
    torch.testing.assert_close(grad, torch.zeros(2, 2), atol=0.1, rtol=0)


def test_chains_that_move_have_less_scatter() -> None:
    q, draw = linear(), linear().draw(5000, seeded())
    still, moving = HMCSampling(2, adaptation=0.0), HMCSampling(2, num_samples=20, adaptation=0.0)
    still.step_size.fill_(1e6)
    moving.step_size.fill_(0.12)
    exact = torch.linalg.solve(W @ W.T + SIGMA**2 * torch.eye(2), draw.x.detach().T).T
    scatter = [(sampler(q, draw, seeded(1))[0] - exact).square().mean() for sampler in (still, moving)]
    assert scatter[1] < scatter[0] / 3


def test_the_step_size_finds_the_acceptance_that_is_aimed_at() -> None:
    q, sampler = linear(), HMCSampling(2)
    assert sampler.step_size.item() == pytest.approx(1 / 2)
    draw, generator = q.draw(100, seeded()), seeded(1)
    for _ in range(20):
        _, notes = sampler(q, draw, generator)
    acceptance = torch.stack([sampler(q, draw, generator)[1]["acceptance"] for _ in range(10)]).mean()
    assert acceptance.item() == pytest.approx(0.67, abs=0.08)
    assert notes["step_size"] < 0.5
    assert "step_size" in sampler.state_dict()


@pytest.mark.parametrize(
    "wrong",
    [{"burn_in": -1}, {"num_samples": 0}, {"leapfrog_steps": 0}, {"target_acceptance": 1.0}, {"adaptation": -0.1}],
)
def test_numbers_outside_their_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HMCSampling(2, **wrong)  # type: ignore[arg-type]
