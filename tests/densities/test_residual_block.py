"""Residual blocks: they contract, have an inverse, and leave no graph behind where none is wanted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.densities.residual_block import ACTIVATIONS, InvertibleResidual, LipSwish, contraction
from uncertainty_est.densities.residual_log_det import LogDet
from uncertainty_est.networks.layers import Layers
from uncertainty_est.networks.lipschitz import SpectralLayers

SHAPES = {"table": (3,), "image": (2, 4, 4)}


def make(kind: str, coeff: float = 0.9, large: bool = True, **changes: Any) -> InvertibleResidual:
    """A block in float64, its weights large so that every bound is in force, its norms known after many passes."""
    torch.manual_seed(0)
    shape = SHAPES[kind]
    residual = contraction(shape, [8, 8], SpectralLayers(coeff, 5), **changes)
    with torch.no_grad():
        for name, parameter in residual.named_parameters():
            if large and name.endswith("weight"):
                parameter.mul_(20)
    block = InvertibleResidual(residual, LogDet(shape, "exact", "exact")).double().train()
    for _ in range(60):
        block.residual(torch.zeros(1, *shape, dtype=torch.float64))
    return block.eval()


def inputs(kind: str, n: int = 5) -> Tensor:
    return 2 * torch.randn(n, *SHAPES[kind], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_log_determinant_is_that_of_the_jacobian(kind: str, activation: str) -> None:
    block, x = make(kind, activation=activation), inputs(kind)
    y, log_det = block(x)
    dim = math.prod(SHAPES[kind])
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda v: block(v[None])[0][0], x[i]).reshape(dim, dim)
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign == 1
        torch.testing.assert_close(log_det[i], expected)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", [True, False])
def test_it_contracts_and_the_inverse_is_the_inverse(kind: str, activation: str, last: bool) -> None:
    block, x = make(kind, activation=activation, last_activation=last), inputs(kind, 200)
    block.tolerance = 1e-12
    assert block.residual.lipschitz == pytest.approx(0.9**3)
    near = x + 1e-4 * torch.randn_like(x)
    ratio = (block.residual(x) - block.residual(near)).flatten(1).norm(dim=1) / (x - near).flatten(1).norm(dim=1)
    assert ratio.max() < 0.9**3 * 1.001
    with torch.no_grad():
        torch.testing.assert_close(block.inverse(block(x)[0]), x, atol=1e-10, rtol=0)
        torch.testing.assert_close(block(block.inverse(x))[0], x, atol=1e-10, rtol=0)


def test_numbers_of_any_size_are_inverted_in_float32() -> None:
    block = make("table").float()
    x = torch.tensor([[1e4, -3e3, 0.1], [1e-3, 0.0, -5.0]])
    with torch.no_grad():
        torch.testing.assert_close(block.inverse(block(x)[0]), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_activation_has_a_slope_above_one(name: str) -> None:
    activation = ACTIVATIONS[name]().double()
    if isinstance(activation, LipSwish):
        nn.init.constant_(activation.raw_beta, 3.0)
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    assert slope.abs().max() <= 1 + 1e-9
    assert slope.max() > 0.99
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert bend.isfinite().all() and bend.abs().max() > 0.1  # the gradient of a log-determinant needs it


def test_lipswish_is_the_papers() -> None:
    x = torch.tensor([-2.0, 0.0, 1.5])
    beta = nn.functional.softplus(torch.tensor(0.5))
    torch.testing.assert_close(LipSwish()(x), x * torch.sigmoid(beta * x) / 1.1)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("evaluation", ["exact", "series"])
def test_without_gradients_there_is_no_graph_but_the_same_result(kind: str, evaluation: str) -> None:
    block, x = make(kind), inputs(kind)
    block.log_det = LogDet(SHAPES[kind], evaluation=evaluation).double().eval()
    y, log_det = block(x)
    assert y.requires_grad and log_det.requires_grad
    with torch.no_grad():
        plain_y, plain_log_det = block(x)
    assert not plain_y.requires_grad and not plain_log_det.requires_grad
    assert not x.requires_grad and x.grad is None
    assert torch.equal(plain_y, y) and torch.equal(plain_log_det, log_det)
    assert all(parameter.grad is None for parameter in block.parameters())


@pytest.mark.parametrize("training", ["exact", "series", "roulette"])
def test_gradients_reach_every_weight_and_the_input(training: str) -> None:
    block, x = make("image", activation="lipswish"), inputs("image").requires_grad_()
    block.log_det = LogDet(SHAPES["image"], training).double()
    block.train()
    _, log_det = block(x)
    log_det.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_residual_that_is_no_contraction_has_no_inverse() -> None:
    linear = nn.Linear(3, 3, bias=False).double()
    nn.init.eye_(linear.weight)
    with torch.no_grad():
        linear.weight.mul_(1.5)
    block = InvertibleResidual(linear, LogDet((3,), "exact", "exact"), max_iterations=50)
    with pytest.raises(ArithmeticError, match="found no inverse within 50 iterations"):
        block.inverse(inputs("table"))


@pytest.mark.parametrize("layers", [SpectralLayers(1.0), SpectralLayers(3.0), Layers()])
def test_layers_that_do_not_contract_are_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match="^layers must have a coeff below 1, for the blocks to be invertible, got"):
        contraction((3,), [8], layers)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of 'elu', 'lipswish', 'softplus', 'tanh', got 'relu'"):
        contraction((3,), [8], SpectralLayers(0.9), "relu")
