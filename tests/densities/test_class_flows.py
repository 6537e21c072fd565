"""Flows of all classes at once: golden values, determinants, normalisation, gradients, independence of classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from uncertainty_est.densities.autoregressive import AutoregressiveFlows
from uncertainty_est.densities.base import ClassDensities
from uncertainty_est.densities.class_flows import ClassFlows
from uncertainty_est.densities.coupling import CouplingFlows
from uncertainty_est.densities.mixture import GaussianMixtures
from uncertainty_est.densities.planar import PlanarFlows
from uncertainty_est.densities.radial import RadialFlows, _LogProb, _transform

FLOWS: list[type[ClassFlows]] = [RadialFlows, PlanarFlows, AutoregressiveFlows]
ALL: list[Callable[..., ClassDensities]] = [*FLOWS, CouplingFlows, GaussianMixtures]
Make = Callable[..., ClassDensities]


def spread(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """`model` in float64 with all parameters moved at random, so that no map is near the identity."""
    generator = torch.Generator().manual_seed(3)
    model = model.double()
    if isinstance(model, AutoregressiveFlows | CouplingFlows):
        scale /= 10  # weights of wide networks: sums of a hundred of them
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def some_points(n: int = 7, dim: int = 3) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_golden_radial_flow() -> None:
    flow = RadialFlows(num_classes=1, dim=2, num_layers=1).double()
    with torch.no_grad():
        flow.centre.copy_(torch.tensor([0.5, -0.5]).view(1, 2, 1, 1))
        flow.raw_a.fill_(0.3)
        flow.raw_b.fill_(-0.2)
    z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    u, log_det = flow.transform(z.T.unsqueeze(1))
    assert u.flatten().tolist() == pytest.approx([0.962363904710, 1.811819523548], abs=1e-11)
    assert log_det.item() == pytest.approx(-0.09732958866190766, abs=1e-12)
    assert flow.log_prob(z).item() == pytest.approx(-4.0396237905694585, abs=1e-12)
    assert (1 + 100 * flow.log_prob(z).exp()).item() == pytest.approx(2.760409399617227, abs=1e-12)


@pytest.mark.parametrize("make", FLOWS)
def test_log_determinants_are_those_of_autograd(make: Callable[..., ClassFlows]) -> None:
    flows = spread(make(num_classes=2, dim=3, num_layers=4), 0.5)
    assert isinstance(flows, ClassFlows)
    _, log_det = flows.transform(some_points().T.unsqueeze(1))
    for i, point in enumerate(some_points()):
        for c in range(2):
            jacobian = torch.autograd.functional.jacobian(
                lambda z, c=c: flows.transform(z.view(3, 1, 1))[0][:, c, 0],
                point,
            )
            assert jacobian.slogdet().logabsdet.item() == pytest.approx(log_det[c, i].item(), abs=1e-9)


@pytest.mark.parametrize("make", ALL)
def test_densities_integrate_to_one(make: Make) -> None:
    density = spread(make(2, 2), 0.2)
    assert isinstance(density, ClassDensities)
    side = torch.linspace(-12, 12, 241, dtype=torch.float64)
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(side, side)).exp().sum(0) * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(2, dtype=torch.float64), atol=5e-3, rtol=0)


@pytest.mark.parametrize("make", ALL)
def test_classes_do_not_see_each_other(make: Make) -> None:
    density = spread(make(3, 3), 0.3)
    assert isinstance(density, ClassDensities)
    z = some_points().requires_grad_()
    log_p = density.log_prob(z)
    assert log_p.shape == (7, 3)
    assert not torch.allclose(log_p[:, 0], log_p[:, 1])
    for c in range(3):
        density.zero_grad()
        density.log_prob(z)[:, c].sum().backward()
        others = torch.tensor([k for k in range(3) if k != c])
        for name, parameter in density.named_parameters():
            if isinstance(density, CouplingFlows):  # a module for each class
                assert (parameter.grad is None) or name.startswith(f"flows.{c}.") or (parameter.grad == 0).all()
            else:
                assert parameter.grad is not None
                class_axis = -2 if isinstance(density, RadialFlows | PlanarFlows) else 0
                assert (parameter.grad.index_select(class_axis, others) == 0).all(), name


@pytest.mark.parametrize("make", ALL)
def test_a_point_does_not_see_its_batch_mates(make: Make) -> None:
    density = spread(make(2, 3), 0.3)
    assert isinstance(density, ClassDensities)
    z = some_points(9)
    torch.testing.assert_close(density.log_prob(z)[[4, 1]], density.log_prob(z[[4, 1]]))


@pytest.mark.parametrize("make", ALL)
def test_gradients_are_those_of_finite_differences(make: Make) -> None:
    density = spread(make(2, 2), 0.3)
    assert isinstance(density, ClassDensities)
    assert torch.autograd.gradcheck(density.log_prob, some_points(3, 2).requires_grad_(), atol=1e-6)


def test_the_written_backward_pass_is_autograds() -> None:
    flows = RadialFlows(num_classes=3, dim=4, num_layers=5).double()
    a, b = (x.detach().requires_grad_() for x in flows.coefficients())
    inputs = (some_points(6, 4).T.unsqueeze(1).clone().requires_grad_(), a, b, flows.centre)
    upstream = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def plain(z: Tensor, a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
        u, log_det = _transform(z, a, b, centre)
        return log_det - 0.5 * u.square().sum(0) - 0.5 * 4 * torch.log(torch.tensor(2 * torch.pi))

    expected, got = plain(*inputs), _LogProb.apply(*inputs)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(_LogProb.apply, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(_LogProb.apply, inputs, atol=1e-6)


def test_second_derivatives_where_the_input_needs_none() -> None:
    flows = RadialFlows(num_classes=2, dim=3, num_layers=2).double()
    (grad,) = torch.autograd.grad(flows.log_prob(some_points()).sum(), flows.raw_a, create_graph=True)
    grad.sum().backward()
    assert flows.raw_b.grad is not None and flows.raw_b.grad.isfinite().all()


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3])
def test_extreme_points_give_finite_values_and_gradients(make: Make, scale: float) -> None:
    torch.manual_seed(0)
    density = make(2, 3)
    z = (scale * some_points()).float().requires_grad_()
    log_p = density.log_prob(z)
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert z.grad is not None and z.grad.isfinite().all()


def test_a_point_at_a_centre_has_a_finite_gradient() -> None:
    flows = RadialFlows(num_classes=1, dim=3, num_layers=1)
    z = flows.centre.detach().view(1, 3).clone().requires_grad_()
    flows.log_prob(z).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_radial_flows_stay_invertible_whatever_the_parameters() -> None:
    flows = spread(RadialFlows(4, 5, 6), 10.0)
    assert isinstance(flows, RadialFlows)
    a, b = flows.coefficients()
    assert (a > 0).all() and (b >= -a).all()
    assert flows.log_prob(some_points(50, 5)).isfinite().all()


def test_planar_flows_stay_invertible_whatever_the_parameters() -> None:
    flows = spread(PlanarFlows(4, 5, 6), 10.0)
    assert isinstance(flows, PlanarFlows)
    assert flows.log_prob(some_points(50, 5)).isfinite().all()


def test_autoregressive_outputs_see_earlier_inputs_only() -> None:
    flows = spread(AutoregressiveFlows(2, 4, num_layers=1, hidden_dims=(8, 8)))
    assert isinstance(flows, AutoregressiveFlows)
    x = some_points(2, 4).expand(2, -1, -1)
    jacobian = torch.autograd.functional.jacobian(lambda x: flows.maps[0](x)[1, 0], x)[:, 1, 0]
    allowed = torch.ones(4, 4).tril(-1).repeat(2, 1).bool()
    assert (jacobian[~allowed] == 0).all()
    assert (jacobian[allowed] != 0).any()


def test_a_mixture_is_the_sum_of_its_weighted_gaussians() -> None:
    mixture = spread(GaussianMixtures(2, 3, num_components=4), 0.3)
    assert isinstance(mixture, GaussianMixtures)
    z = some_points()
    diagonal = torch.diag_embed(mixture.raw_tril.diagonal(dim1=-2, dim2=-1).exp() + 1e-3)
    tril = mixture.raw_tril.tril(-1) + diagonal
    for c in range(2):
        weights = mixture.logits[c].softmax(0)
        parts = [MultivariateNormal(mixture.mean[c, m], scale_tril=tril[c, m]).log_prob(z).exp() for m in range(4)]
        torch.testing.assert_close(mixture.log_prob(z)[:, c], (torch.stack(parts, -1) @ weights).log())


def test_coupling_samples_follow_their_density() -> None:
    """With equal classes, samples mapped back are standard normal; draws come from the generator alone."""
    torch.manual_seed(0)
    flows = CouplingFlows(2, 3, num_layers=3, hidden_dims=(16,))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        x = flows.sample(4000, torch.Generator().manual_seed(1))
        again = flows.sample(4000, torch.Generator().manual_seed(1))
        noise = flows.flows[1]().transform(x[1::2])
    assert torch.equal(x, again) and torch.equal(torch.random.get_rng_state(), state)
    assert x.shape == (4000, 3)
    torch.testing.assert_close(noise.mean(0), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(noise.T.cov(), torch.eye(3), atol=0.1, rtol=0)


@pytest.mark.parametrize("make", ALL)
def test_numbers_below_one_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        make(0, 2)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        make(2, 0)
    with pytest.raises(ValueError, match=r"num_(layers|components) must be at least 1, got 0"):
        make(2, 2, 0)
