"""Spectral normalisation against the singular values of explicit matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.networks.lipschitz import SpectralConv1x1, SpectralConv2d, SpectralLayers, SpectralLinear

# in, out, kernel, stride, padding, input size
CONVS = {
    "stride 1": (2, 3, 3, 1, 1, (8, 8)),
    "stride 2": (2, 3, 3, 2, 1, (8, 8)),
    "stride 2, odd": (2, 3, 3, 2, 1, (7, 7)),
    "stride 2, oblong": (3, 2, 3, 2, 1, (7, 8)),
    "stride 3": (2, 3, 3, 3, 1, (8, 7)),
    "5x5 unpadded": (2, 3, 5, 1, 0, (8, 8)),
    "1x1": (5, 3, 1, 1, 0, (8, 8)),
    "1x1, stride 2": (3, 5, 1, 2, 0, (7, 7)),
}
each_conv = pytest.mark.parametrize("case", CONVS)


def make_conv(case: str, coeff: float = 3.0, **changes: Any) -> Any:
    c_in, c_out, kernel, stride, padding, size = CONVS[case]
    torch.manual_seed(0)
    layers = SpectralLayers(coeff)
    return layers.conv(c_in, c_out, kernel, stride=stride, padding=padding, input_size=size, **changes).double()


def example(case: str, batch: int = 2) -> Tensor:
    c_in, *_, size = CONVS[case]
    return torch.randn(batch, c_in, *size, dtype=torch.float64)


def conv_matrix(layer: nn.Conv2d, weight: Tensor, case: str) -> Tensor:
    """Matrix of the convolution, one column for each pixel of the input."""
    c_in, *_, size = CONVS[case]
    pixels = torch.eye(c_in * size[0] * size[1], dtype=weight.dtype).view(-1, c_in, *size)
    return F.conv2d(pixels, weight, None, layer.stride, layer.padding).flatten(1).T


def norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()


def make_linear(coeff: float = 3.0) -> Any:
    torch.manual_seed(0)
    return SpectralLayers(coeff).linear(6, 4).double()


@each_conv
def test_sigma_is_the_norm_of_the_explicit_convolution_matrix(case: str) -> None:
    layer = make_conv(case)
    layer.power_iterate(3000)
    expected = norm(conv_matrix(layer, layer.weight.detach(), case))
    assert layer.sigma.item() == pytest.approx(expected, rel=1e-6)


def test_sigma_is_the_largest_singular_value_of_a_linear_layer() -> None:
    layer = make_linear()
    layer.power_iterate(1000)
    assert layer.sigma.item() == pytest.approx(norm(layer.weight.detach()), rel=1e-9)


@each_conv
def test_adjoint_is_the_transpose(case: str) -> None:
    layer = make_conv(case)
    u, v = torch.randn_like(layer.u), torch.randn_like(layer.v)
    left = (u * layer.operator(layer.weight, v)).sum()
    right = (layer.adjoint(layer.weight, u) * v).sum()
    torch.testing.assert_close(left, right)


def test_kinds() -> None:
    assert type(make_conv("1x1")) is SpectralConv1x1
    assert type(make_conv("stride 2")) is SpectralConv2d
    assert type(make_linear()) is SpectralLinear


@pytest.mark.parametrize("case", ["stride 1", "stride 2, odd", "1x1", "1x1, stride 2"])
def test_a_fresh_layer_already_knows_its_norm(case: str) -> None:
    layer = make_conv(case)
    exact = norm(conv_matrix(layer, layer.weight.detach(), case))
    assert 0.9 * exact < layer.sigma.item() <= exact * (1 + 1e-6)


def test_the_norm_is_that_of_the_weights_drawn_by_init() -> None:
    layer = make_conv("stride 1", init=lambda conv: nn.init.constant_(conv.weight, 2.0))
    assert (layer.weight == 2).all()
    exact = norm(conv_matrix(layer, layer.weight.detach(), "stride 1"))
    assert layer.sigma.item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_small_weights_stay_bit_for_bit(training: bool) -> None:
    for layer in (make_linear(1e3), make_conv("1x1", 1e3), make_conv("1x1, stride 2", 1e3)):
        assert torch.equal(layer.train(training).bounded_weight(), layer.weight)
    conv = make_conv("stride 1", 1e3).train(training)
    torch.testing.assert_close(conv.bounded_weight(), conv.weight / 1.00001, rtol=1e-14, atol=0)


@each_conv
def test_large_weights_are_brought_to_the_coefficient(case: str) -> None:
    layer = make_conv(case, coeff=0.2).train()
    for _ in range(300):
        layer(example(case))
    layer.eval()
    bounded = norm(conv_matrix(layer, layer.bounded_weight().detach(), case))
    assert 0.2 * 0.999 < bounded <= 0.2 * 1.001
    # The map itself, bias and all, keeps to the bound.
    x, y = example(case), example(case)
    ratio = (layer(x) - layer(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() <= 0.2 * 1.001


def test_large_matrices_are_brought_to_the_coefficient() -> None:
    layer = make_linear(coeff=0.2).train()
    for _ in range(300):
        layer(torch.randn(2, 6, dtype=torch.float64))
    assert norm(layer.eval().bounded_weight().detach()) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("coeff", [0.1, 100.0])
@each_conv
def test_output_is_the_convolution_with_the_bounded_weight(case: str, coeff: float) -> None:
    layer = make_conv(case, coeff).eval()
    x = example(case)
    divisor = max(1.0, layer.sigma.item() / coeff) + (0 if "1x1" in case else 1e-5)
    expected = F.conv2d(x, layer.weight / divisor, layer.bias, layer.stride, layer.padding)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("iterations", [1, 4])
def test_iterations_happen_in_training_mode_only(iterations: int) -> None:
    layer: Any = SpectralLayers(3.0, iterations).conv(2, 3, 3, padding=1, input_size=(8, 8))
    by_hand = copy.deepcopy(layer)
    where, before = (layer.u.data_ptr(), layer.v.data_ptr()), layer.u.clone()
    x = torch.randn(2, 2, 8, 8)
    layer.eval()(x)
    assert torch.equal(layer.u, before)
    layer.train()(x)
    assert not torch.equal(layer.u, before)
    by_hand.power_iterate(iterations)
    assert torch.equal(layer.u, by_hand.u)
    assert torch.equal(layer.v, by_hand.v)
    # DDP broadcasts the tensors that it saw when it wrapped the module.
    assert (layer.u.data_ptr(), layer.v.data_ptr()) == where


@pytest.mark.parametrize("coeff", [0.1, 100.0])
def test_gradients_flow_through_the_norm(coeff: float) -> None:
    layer = make_conv("stride 2, odd", coeff).eval()
    x = example("stride 2, odd", 1)

    def output(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(output, (weight, x.requires_grad_()))
    assert not layer.u.requires_grad and not layer.v.requires_grad


@pytest.mark.parametrize("case", ["linear", "1x1", "stride 2"])
def test_two_forwards_before_one_backward(case: str) -> None:
    layer = make_linear(0.1) if case == "linear" else make_conv(case, 0.1)
    first, second = ((torch.randn(3, 6, dtype=torch.float64) if case == "linear" else example(case)) for _ in range(2))
    layer.train()
    one_by_one = copy.deepcopy(layer)
    (layer(first).square().sum() + layer(second).square().sum()).backward()
    for x in (first, second):
        one_by_one(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, one_by_one.weight.grad)
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("case", ["linear", "1x1", "stride 2"])
def test_the_norm_is_float32_under_bfloat16_autocast(case: str) -> None:
    layer = (make_linear(0.1) if case == "linear" else make_conv(case, 0.1)).float().train()
    x = torch.randn(3, 6) if case == "linear" else example(case).float()
    reference = copy.deepcopy(layer)
    reference(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        sigma = layer.sigma
    assert y.dtype == torch.bfloat16
    assert sigma.dtype == layer.u.dtype == torch.float32
    assert torch.equal(layer.u, reference.u)
    assert torch.equal(layer.v, reference.v)
    assert torch.equal(sigma, reference.sigma)
    y.float().square().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_a_half_precision_module_keeps_its_norm_in_float32() -> None:
    layer = make_linear(0.1).bfloat16().train()
    assert layer(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.sigma.dtype == torch.float32


def test_state_holds_the_singular_vectors() -> None:
    layer, other = make_conv("stride 2"), make_conv("stride 2")
    layer.power_iterate(10)
    with torch.no_grad():
        other.weight.normal_()
    other.load_state_dict(layer.state_dict(), strict=True)
    assert set(layer.state_dict()) == {"weight", "bias", "u", "v"}
    assert torch.equal(other.sigma, layer.sigma)


def test_another_input_size_is_refused() -> None:
    layer = make_conv("stride 2, oblong")
    with pytest.raises(ValueError, match=r"was made for inputs of 7x8, got 8x8"):
        layer(torch.randn(2, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("coeff", [0.0, -1.0, float("nan")])
def test_the_coefficient_must_be_positive(coeff: float) -> None:
    with pytest.raises(ValueError, match="coeff must be positive, got"):
        SpectralLayers(coeff)


def test_there_must_be_an_iteration() -> None:
    with pytest.raises(ValueError, match="n_power_iterations must be at least 1, got 0"):
        SpectralLayers(n_power_iterations=0)
