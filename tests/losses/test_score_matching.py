"""Sliced score matching: golden values, exact expectations over all slices, and what smoothness is needed for."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.losses.score_matching import draw_slices, sliced_score_matching

Density = Callable[[Tensor], Tensor]


def values(log_density: Density, x: Tensor, v: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return sum(sliced_score_matching(log_density(x), x, v))  # type: ignore[return-value]


def gaussian(variance: Tensor | float) -> Density:
    return lambda x: -x.square().flatten(1).sum(1) / (2 * variance)


def data_of_variance(variance: float, dim: int, n: int = 8) -> Tensor:
    """Points whose squared norm is exactly D times the variance."""
    signs = draw_slices(torch.empty(n, dim, dtype=torch.float64), "rademacher", torch.Generator().manual_seed(0))
    return variance**0.5 * signs


def all_signs(dim: int) -> Tensor:
    """Every Rademacher slice: their mean is the expectation."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim)), dtype=torch.float64)


def network(activation: nn.Module, outputs: int, dim: int = 3) -> Density:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(dim, 16), activation, nn.Linear(16, 16), activation, nn.Linear(16, outputs)).double()
    return lambda x: net(x).logsumexp(-1)


def test_golden_value() -> None:
    """D v / (2 s^4) - D / s^2 of a Gaussian model: with signs, the curvature is exact."""
    x = data_of_variance(1.5, 3)
    v = draw_slices(x, "rademacher", torch.Generator().manual_seed(1))
    torch.testing.assert_close(values(gaussian(2.0), x, v), torch.full((8,), -0.9375, dtype=torch.float64))


def test_least_where_the_models_variance_is_the_datas() -> None:
    x = data_of_variance(1.5, 3)
    v = draw_slices(x, "rademacher", torch.Generator().manual_seed(1))
    variance = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    values(gaussian(variance), x, v).mean().backward()
    assert variance.grad.item() == pytest.approx(0, abs=1e-12)
    least = values(gaussian(1.5), x, v).mean()
    for other in (0.75, 1.4, 1.6, 3.0):
        assert values(gaussian(other), x, v).mean() > least


def test_it_is_fishers_divergence_up_to_a_constant_of_the_data() -> None:
    """E |s_model - s_data|^2 / 2 - E |s_data|^2 / 2, for two Gaussians."""
    x = data_of_variance(1.5, 3)
    v = draw_slices(x, "rademacher", torch.Generator().manual_seed(1))
    for model in (0.5, 1.0, 4.0):
        fisher = 0.5 * 3 * 1.5 * (1 / model - 1 / 1.5) ** 2
        assert values(gaussian(model), x, v).mean().item() == pytest.approx(fisher - 0.5 * 3 / 1.5)


def test_the_mean_over_all_slices_is_exact_score_matching() -> None:
    density = network(nn.Tanh(), 4)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sliced = torch.stack([values(density, x, v.expand(5, 3)) for v in all_signs(3)]).mean(0)

    def one(point: Tensor) -> Tensor:
        return density(point.unsqueeze(0)).squeeze(0)

    scores = torch.stack([torch.autograd.functional.jacobian(one, point) for point in x])
    traces = torch.stack([torch.autograd.functional.hessian(one, point).trace() for point in x])
    torch.testing.assert_close(sliced, 0.5 * scores.square().sum(-1) + traces)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_slices_have_unit_covariance(kind: str) -> None:
    v = draw_slices(torch.empty(200_000, 3), kind, torch.Generator().manual_seed(0))
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3), atol=0.02, rtol=0)


def test_signs_are_exact_for_diagonal_hessians_and_normal_slices_are_not() -> None:
    scale = torch.tensor([1.0, 2.0, 5.0])
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def curvature(kind: str) -> Tensor:
        v = draw_slices(x, kind, torch.Generator().manual_seed(1))
        return sliced_score_matching(-(scale * x.square()).sum(-1) / 2, x, v)[1]

    torch.testing.assert_close(curvature("rademacher"), torch.full((50,), -8.0))
    assert curvature("gaussian").std() > 1


def test_all_dimensions_of_an_image_are_summed() -> None:
    density = network(nn.Tanh(), 4, dim=12)
    x = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = draw_slices(x, "gaussian", torch.Generator().manual_seed(1))
    flat = values(density, x.flatten(1), v.flatten(1))
    torch.testing.assert_close(values(lambda image: density(image.flatten(1)), x, v), flat)


@pytest.mark.parametrize(
    ("activation", "outputs", "curved"),
    [(nn.LeakyReLU(), 1, False), (nn.ReLU(), 1, False), (nn.LeakyReLU(), 4, True), (nn.ELU(), 1, True)],
)
def test_piecewise_linear_networks_have_no_curvature_but_that_of_the_log_sum(
    activation: nn.Module, outputs: int, curved: bool
) -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    v = draw_slices(x, "gaussian", torch.Generator().manual_seed(1))
    _, curvature = sliced_score_matching(network(activation, outputs)(x), x, v)
    assert bool(curvature.abs().max() > 1e-3) is curved
    if not curved:
        assert torch.equal(curvature, torch.zeros_like(curvature))


def test_a_linear_density_has_no_curvature_at_all() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)
    half_norm, curvature = sliced_score_matching(x @ weight, x, torch.ones_like(x))
    torch.testing.assert_close(half_norm, (0.5 * weight.square().sum()).expand(5))
    assert torch.equal(curvature, torch.zeros(5))


def test_a_constant_in_the_density_changes_nothing() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    v = draw_slices(x, "gaussian")
    density = network(nn.Tanh(), 4)
    torch.testing.assert_close(values(lambda z: density(z) + 7.0, x, v), values(density, x, v))


def test_both_terms_are_differentiable_in_the_parameters() -> None:
    precision = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = data_of_variance(1.5, 3).requires_grad_()
    v = draw_slices(x, "rademacher", torch.Generator().manual_seed(1))
    half_norm, curvature = sliced_score_matching(-precision * x.square().sum(-1) / 2, x, v)
    (first,) = torch.autograd.grad(half_norm.mean(), precision, retain_graph=True)
    (second,) = torch.autograd.grad(curvature.mean(), precision)
    assert first.item() == pytest.approx(3 * 1.5 * 0.5)  # of precision^2 D v / 2
    assert second.item() == pytest.approx(-3)  # of -precision D


def test_slices_of_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="slices must be one of 'gaussian', 'rademacher', got 'radermacher'"):
        draw_slices(torch.empty(1, 2), "radermacher")
