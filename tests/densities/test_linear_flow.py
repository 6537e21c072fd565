"""Flows of linear maps: which of them are densities, and how near to one the others are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from uncertainty_est.densities.linear_flow import EXACT_KINDS, KINDS, LeakyELU, LinearMaps
from uncertainty_est.densities.normal_flow import NormalFlow

each_kind = pytest.mark.parametrize("kind", KINDS)
each_exact_kind = pytest.mark.parametrize("kind", EXACT_KINDS)


def moved(
    kind: str, dim: int = 3, layers: int = 4, by: float = 0.3, slope: float = 0.1, learn: bool = True
) -> LinearMaps:
    """With all parameters moved away from where they start, in float64."""
    torch.manual_seed(0)
    maps = LinearMaps(dim, layers, kind, slope, learn).double()
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return maps


def inputs(n: int = 6, dim: int = 3) -> Tensor:
    return 2 * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def true_log_det(maps: torch.nn.Module, x: Tensor) -> Tensor:
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: maps(v[None])[0][0]))(x)
    return torch.linalg.slogdet(jacobian).logabsdet


def mass(maps: LinearMaps, extent: float = 12.0, points: int = 600) -> float:
    """Integral of the density of a flow in the plane."""
    side = torch.linspace(-extent, extent, points, dtype=torch.float64)
    with torch.no_grad():
        log_p = NormalFlow([2], [maps]).log_prob(torch.cartesian_prod(side, side))
    return (log_p.exp().sum() * (side[1] - side[0]) ** 2).item()


@pytest.mark.parametrize("slope", [0.0, 1e-3, 0.1, 1.0, 3.0])
def test_the_bend_and_its_log_determinant(slope: float) -> None:
    bend, x = LeakyELU(3, slope).double(), 3 * inputs(20)
    y, log_det = bend(x)
    torch.testing.assert_close(y, slope * x + (1 - slope) * torch.nn.functional.elu(x))
    torch.testing.assert_close(log_det, true_log_det(bend, x))


@pytest.mark.parametrize("slope", [1e-3, 0.1, 0.7, 1.0, 3.0, 50.0])
def test_the_inverse_of_the_bend(slope: float) -> None:
    bend = LeakyELU(1, slope).double()
    y = torch.cat([torch.linspace(-50, 50, 2001), torch.tensor([-1e4, -1.0, -1e-9, 0.0, 1e-9, 1e4])])
    y = y.double()[:, None]
    torch.testing.assert_close(bend(bend.inverse(y))[0], y, atol=1e-11, rtol=1e-11)


def test_elu_itself_has_a_finite_log_determinant_where_its_slope_underflows() -> None:
    y, log_det = LeakyELU(2, 0.0)(torch.tensor([[-1000.0, 1.0]]))
    torch.testing.assert_close(y, torch.tensor([[-1.0, 1.0]]))
    torch.testing.assert_close(log_det, torch.tensor([-1000.0]))


def test_only_what_is_asked_for_is_learnt() -> None:
    assert not list(LeakyELU(3, 0.1).parameters())
    assert [p.shape for p in LeakyELU(3, 0.1, learn=True).parameters()] == [(3,)]


@each_exact_kind
@pytest.mark.parametrize("slope", [0.0, 0.1, 2.0])
def test_exact_flows_have_the_log_determinant_of_their_jacobian(kind: str, slope: float) -> None:
    maps, x = moved(kind, slope=slope, learn=slope > 0), inputs()
    torch.testing.assert_close(maps(x)[1], true_log_det(maps, x))


@each_exact_kind
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_exact_factors_stay_orthogonal_wherever_training_moves_them(kind: str, dim: int) -> None:
    maps = moved(kind, dim=dim, by=2.0)
    eye = torch.eye(dim, dtype=torch.float64).expand(4, dim, dim)
    for factor in maps.factors():
        torch.testing.assert_close(factor @ factor.mT, eye)
    assert maps.penalty() < 1e-12


@each_exact_kind
def test_factors_follow_the_optimizer_at_every_step(kind: str) -> None:
    maps, x = LinearMaps(3, 2, kind), inputs().float()
    optimizer = torch.optim.SGD(maps.parameters(), lr=0.5)
    before = [factor.detach() for factor in maps.factors()]
    for _ in range(2):
        optimizer.zero_grad()
        maps(x)[0].sin().mean().backward()
        for parameter in maps.parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
        optimizer.step()
        after = [factor.detach() for factor in maps.factors()]
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(after, before, strict=True))
        before = after


@pytest.mark.parametrize("kind", ["reparameterized", "orthogonal"])
def test_approximate_flows_are_exact_while_their_factors_are_orthogonal(kind: str) -> None:
    torch.manual_seed(0)
    maps, x = LinearMaps(3, 4, kind).double(), inputs()
    torch.testing.assert_close(maps(x)[1], true_log_det(maps, x), atol=1e-5, rtol=0)
    assert maps.penalty() < 1e-5
    maps = moved(kind)
    error = (true_log_det(maps, x) - maps(x)[1]).detach()
    assert error.abs().min() > 0.1
    # What they miss is the volume of the factors.
    missing = torch.linalg.slogdet(torch.stack(maps.factors())).logabsdet.sum()
    torch.testing.assert_close(error, missing.detach().expand(len(x)))


@each_exact_kind
@pytest.mark.parametrize("slope", [0.4, 2.0])
def test_exact_flows_have_a_mass_of_one(kind: str, slope: float) -> None:
    assert mass(moved(kind, dim=2, layers=3, slope=slope, by=0.2), extent=40, points=1000) == pytest.approx(1, abs=2e-3)


def test_elu_is_not_onto_so_that_mass_is_missing() -> None:
    torch.manual_seed(0)
    # One bend after a rotation: what the base has outside of the rotated quadrant above -1 has no image.
    maps = LinearMaps(2, 2, "svd", negative_slope=0.0).double()
    with torch.no_grad():
        maps.bias.zero_()
    above = 0.5 * math.erfc(-1 / math.sqrt(2))
    assert mass(maps, extent=30, points=1000) == pytest.approx(above**2, abs=2e-3)


@pytest.mark.parametrize("kind", ["reparameterized", "orthogonal"])
def test_approximate_flows_have_another_mass(kind: str) -> None:
    assert abs(mass(moved(kind, dim=2, layers=3, slope=0.4), extent=40, points=1000) - 1) > 0.1


@each_kind
def test_the_inverse_is_the_inverse(kind: str) -> None:
    maps, x = moved(kind), inputs(20)
    y, _ = maps(x)
    torch.testing.assert_close(maps.inverse(y), x)
    torch.testing.assert_close(maps(maps.inverse(x))[0], x)


def test_a_flow_through_elu_has_no_inverse() -> None:
    with pytest.raises(ValueError, match="^negative_slope must be positive for the flow to have an inverse, got 0$"):
        LinearMaps(2, 2, negative_slope=0.0).inverse(torch.zeros(1, 2))


@each_kind
def test_without_bends_it_is_the_standard_normal_at_first(kind: str) -> None:
    torch.manual_seed(0)
    maps, x = LinearMaps(3, 4, kind, negative_slope=1.0).double(), inputs()
    if maps.has_scales:
        torch.nn.init.zeros_(maps.bias)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(NormalFlow([3], [maps]).log_prob(x), expected, atol=1e-4, rtol=0)


def test_the_penalty_in_closed_form() -> None:
    """U = c I and V = I: the mean over layers of |1 - c^2| sqrt D."""
    maps = LinearMaps(5, 3, "reparameterized")
    with torch.no_grad():
        maps.raw_u.copy_(torch.eye(5).expand(3, 5, 5) * torch.tensor([1.0, 2.0, 0.5])[:, None, None])
        maps.raw_v.copy_(torch.eye(5))
    assert maps.penalty().item() == pytest.approx((0 + 3 + 0.75) / 3 * math.sqrt(5), rel=1e-6)
    gradient = torch.autograd.grad(maps.penalty(), [maps.raw_u, maps.raw_v])
    assert all(g.isfinite().all() for g in gradient)  # also where the norm is 0


def test_a_weight_above_the_bound_makes_growing_factors_a_loss() -> None:
    """NLL falls by L D e when all factors U grow by e and nothing else; the penalty rises by 2 e sqrt D."""
    dim, layers = 4, 6
    bound = layers * math.sqrt(dim) / 2

    def loss(growth: Tensor, weight: float) -> Tensor:
        # As the scales shrink in turn, the map and the noise stay as they are.
        gain = layers * dim * growth
        return weight * ((1 + growth) ** 2 - 1).abs() * math.sqrt(dim) - gain

    for weight, sign in ((0.9 * bound, -1), (1.1 * bound, 1)):
        assert math.copysign(1, loss(torch.tensor(1e-4, dtype=torch.float64), weight).item()) == sign
    maps = LinearMaps(dim, layers, "reparameterized").double()
    x = inputs(dim=dim)
    before, log_det = maps(x)
    with torch.no_grad():
        maps.raw_u.mul_(1.01)
        maps.log_scale.sub_(math.log(1.01))
    after, lower = maps(x)
    torch.testing.assert_close(after, before)  # so that the same map has now a lower log-determinant
    torch.testing.assert_close(log_det - lower, torch.full_like(lower, layers * dim * math.log(1.01)))


def test_many_small_scales_do_not_underflow() -> None:
    maps = LinearMaps(600, 1, "orthogonal"), LinearMaps(600, 1, "reparameterized")
    with torch.no_grad():
        maps[1].log_scale.fill_(-2.0)
    assert maps[1](torch.zeros(1, 600))[1].item() == pytest.approx(-1200, rel=1e-6)
    assert maps[0](torch.zeros(1, 600))[1].item() == 0


@each_kind
def test_saving_and_loading(kind: str) -> None:
    maps, x = moved(kind), inputs()
    again = LinearMaps(3, 4, kind, 0.1, True).double()
    again.load_state_dict(copy.deepcopy(maps.state_dict()), strict=True)
    for a, b in zip(again(x), maps(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rows_do_not_know_of_each_other() -> None:
    flow, x = NormalFlow([3], [moved("svd")]), inputs(10)
    order = torch.randperm(10)
    torch.testing.assert_close(flow.log_prob(x[order]), flow.log_prob(x)[order])


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_samples_have_the_entropy_of_the_density(kind: str) -> None:
    flow = NormalFlow([2], [moved(kind, dim=2, layers=3, slope=0.4, by=0.2)])
    samples = flow.sample(20_000, torch.Generator().manual_seed(0))
    side = torch.linspace(-40, 40, 1000, dtype=torch.float64)
    with torch.no_grad():
        log_p = flow.log_prob(torch.cartesian_prod(side, side))
        entropy = -(log_p.exp() * log_p).sum() * (side[1] - side[0]) ** 2
        drawn = -flow.log_prob(samples)
    assert abs(drawn.mean() - entropy) < 4 * drawn.std() / math.sqrt(len(samples)) + 5e-3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(
        ValueError, match="^flow must be one of 'svd', 'svd_mat_exp', 'reparameterized', 'orthogonal', got"
    ):
        LinearMaps(2, 2, "cayley")
    with pytest.raises(ValueError, match="^num_layers must be at least 1, got 0$"):
        LinearMaps(2, 0)
    with pytest.raises(ValueError, match="^negative_slope must be at least 0 and finite, got -0.1$"):
        LinearMaps(2, 2, negative_slope=-0.1)
    with pytest.raises(ValueError, match="^negative_slope must be positive and finite, got 0.0$"):
        LinearMaps(2, 2, negative_slope=0.0, learn_slope=True)
