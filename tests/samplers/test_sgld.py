"""Langevin chains against the laws that they must have, and against the cost that they may have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.samplers.sgld import SGLD, value_and_gradient


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_stationary_variance_is_that_of_the_linear_recursion() -> None:
    """On -x^2/2 the chain is x <- (1 - a) x + s e, of stationary variance s^2 / (1 - (1 - a)^2)."""
    sampler = SGLD(steps=200, lr=0.1, std=math.sqrt(0.2))
    x = sampler(lambda x: -x.square().sum(-1) / 2, torch.zeros(200_000, 1), seeded()).x
    # Standard error of a variance: sqrt(2 / n) times itself, 0.0033.
    assert float(x.var()) == pytest.approx(1.0526315789473686, abs=0.012)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.01)


def test_mean_and_covariance_of_a_correlated_normal() -> None:
    mean = torch.tensor([1.0, -2.0])
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    x = SGLD(steps=800, lr=0.01, std=math.sqrt(0.02))(normal.log_prob, torch.zeros(20_000, 2), seeded()).x
    torch.testing.assert_close(x.mean(0), mean, atol=0.04, rtol=0)
    # The recursion's exact covariance solves S = A S A + 2 a I with A = I - a / covariance.
    precision = torch.linalg.inv(covariance)
    exact = torch.linalg.inv(precision - 0.01 / 2 * precision @ precision)
    torch.testing.assert_close(torch.cov(x.T), exact, atol=0.05, rtol=0)


def test_a_step_is_the_formula_and_holds_the_box() -> None:
    x, gradient = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 3.0]])
    noise = torch.randn(1, 2, generator=seeded())
    torch.testing.assert_close(SGLD(1, 0.5, 0.1).step(x, gradient, seeded()), x + 0.5 * gradient + 0.1 * noise)
    assert torch.equal(SGLD(1, 0.5, 0.0, clamp=[-1, 1]).step(x, gradient), torch.tensor([[1.0, 0.5]]))
    assert torch.equal(x, torch.tensor([[1.0, -1.0]])), "the states given stay as they are"


def test_one_pass_forward_and_one_gradient_a_step() -> None:
    calls = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            calls["forward"] += 1
            return x.sum(-1)

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            calls["backward"] += 1
            return grad.unsqueeze(-1).expand(-1, 2)

    SGLD(steps=7)(Counted.apply, torch.zeros(3, 2), seeded())
    assert calls == {"forward": 7, "backward": 7}


def test_statistics_are_those_of_the_last_step() -> None:
    start = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    chain = SGLD(steps=1, lr=0.5, std=0.0)(lambda x: x.square().sum(-1) / 2, start)
    assert float(chain.statistics["gradient_norm"]) == pytest.approx(2.5)
    assert float(chain.statistics["step_length"]) == pytest.approx(1.25)
    still = SGLD(steps=0)(lambda x: x.sum(-1), start)
    assert torch.equal(still.x, start)
    assert still.statistics == {}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_of_the_input_only_in_every_grad_mode(mode: type[torch.no_grad]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    with mode():
        x = torch.randn(5, 2)
        value, gradient = value_and_gradient(lambda x: network(x).squeeze(-1), x)
        moved = SGLD(steps=2)(lambda x: network(x).squeeze(-1), x).x
    assert not moved.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    x = x.clone()
    expected = torch.autograd.functional.jacobian(lambda x: network(x).squeeze(-1), x).diagonal(dim1=0, dim2=1).T
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(value, network(x).squeeze(-1).detach())


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (SGLD(steps=3)(lambda x: -x.square().sum(-1), torch.ones(4, 2), seeded(5)).x for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": -1.0}, {"std": -0.1}, {"clamp": [1, -1]}, {"clamp": [1]}])
def test_wrong_arguments_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SGLD(**wrong)  # type: ignore[arg-type]
