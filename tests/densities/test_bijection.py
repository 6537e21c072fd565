"""Every bijection against autograd's Jacobian, its own inverse and independent libraries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, SigmoidTransform
from torch.nn import functional as F

from uncertainty_est.densities.actnorm import ActNorm
from uncertainty_est.densities.bijection import Bijection, InvertibleConv, Logit, Squeeze, Unsqueeze
from uncertainty_est.densities.coupling_nets import ConvNet, ResidualNet
from uncertainty_est.densities.image_coupling import ChannelCoupling, CheckerboardCoupling
from uncertainty_est.densities.image_flow import Stage

SHAPE = (4, 2, 4)
C = SHAPE[0]

BIJECTIONS = {
    "squeeze": lambda: Squeeze(),
    "squeeze-diagonals": lambda: Squeeze("diagonals"),
    "unsqueeze": lambda: Unsqueeze(),
    "conv": lambda: InvertibleConv(C),
    "logit": lambda: Logit(),
    "actnorm": lambda: ActNorm(C),
    "channels": lambda: ChannelCoupling(ConvNet(C // 2, C, 8), C),
    "channels-first": lambda: ChannelCoupling(ConvNet(C // 2, C, 8), C, change_first=True),
    "checkerboard": lambda: CheckerboardCoupling(ResidualNet(C, 2 * C, 8, 1), SHAPE),
    "checkerboard-first": lambda: CheckerboardCoupling(ResidualNet(C, 2 * C, 8, 1), SHAPE, change_first=True),
    "stage": lambda: Stage([ActNorm(C), InvertibleConv(C), Squeeze(), ActNorm(4 * C)]),
}


def moved(bijection: nn.Module) -> nn.Module:
    """In float64, with every parameter moved away from where it begins."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bijection.double().eval()


@pytest.fixture(params=BIJECTIONS)
def bijection(request: pytest.FixtureRequest) -> Bijection:
    torch.manual_seed(0)
    module = moved(BIJECTIONS[request.param]())
    assert isinstance(module, Bijection)
    return module


@pytest.fixture
def x() -> Tensor:
    """Inside the unit cube, where all of them are defined."""
    return torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_log_determinants_are_those_of_the_jacobian(bijection: Bijection, x: Tensor) -> None:
    log_det = bijection(x)[1].expand(len(x))
    for i in range(len(x)):
        jacobian = torch.func.jacrev(lambda a: bijection(a[None])[0][0])(x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(x[i].numel(), x[i].numel())).logabsdet
        torch.testing.assert_close(log_det[i], expected, atol=1e-10, rtol=0)


def test_inverse_undoes_forward_and_forward_inverse(bijection: Bijection, x: Tensor) -> None:
    y = bijection(x)[0]
    torch.testing.assert_close(bijection.inverse(y), x, atol=1e-10, rtol=0)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(bijection(bijection.inverse(noise))[0], noise, atol=1e-10, rtol=0)


def test_the_output_has_the_announced_shape(bijection: Bijection, x: Tensor) -> None:
    assert tuple(bijection(x)[0].shape[1:]) == bijection.output_shape(SHAPE)


def test_an_input_does_not_depend_on_its_batch(bijection: Bijection, x: Tensor) -> None:
    y, log_det = bijection(x)
    y_one, log_det_one = bijection(x[1:2])
    torch.testing.assert_close(y_one, y[1:2])
    torch.testing.assert_close(log_det_one.expand(1), log_det.expand(3)[1:2])


def test_squeezing_goes_through_blocks_row_by_row() -> None:
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    y, _ = Squeeze()(x)
    # pixel_unshuffle keeps the four pixels of a channel together, this keeps the channels of a pixel together.
    expected = F.pixel_unshuffle(x, 2).view(1, 2, 4, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3)
    assert torch.equal(y, expected)


def test_squeezing_by_diagonals_separates_the_colours_of_a_checkerboard() -> None:
    colour = ((torch.arange(4)[:, None] + torch.arange(6)) % 2).expand(1, 3, 4, 6).float()
    first, second = Squeeze("diagonals")(colour)[0].chunk(2, dim=1)
    assert (first == 0).all()
    assert (second == 1).all()


def test_the_logit_is_that_of_torch_distributions() -> None:
    x = torch.rand(5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = ComposeTransform([AffineTransform(0.05, 0.9), SigmoidTransform().inv])
    y, log_det = Logit()(x)
    torch.testing.assert_close(y, reference(x))
    torch.testing.assert_close(log_det, reference.log_abs_det_jacobian(x, y).flatten(1).sum(1))


def test_the_logits_constant() -> None:
    x = torch.rand(1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, log_det = Logit()(x)
    constant = log_det - (F.softplus(y) + F.softplus(-y)).sum()
    assert constant.item() == pytest.approx(-0.10536051565782628, abs=1e-12)


def test_the_logit_is_finite_at_both_ends_in_single_precision() -> None:
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).requires_grad_()
    y, log_det = Logit()(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([-math.log(19), math.log(19)]))
    (gradient,) = torch.autograd.grad(log_det.sum() + y.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_logit_refuses_a_share_outside_the_unit_interval(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Logit(share)


def test_the_convolution_begins_as_a_rotation() -> None:
    conv = InvertibleConv(6).double()
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(conv.weight @ conv.weight.T, identity, atol=1e-6, rtol=0)
    assert conv(torch.randn(2, 6, 3, 3, dtype=torch.float64))[1].abs() < 1e-5


@pytest.mark.parametrize("change_first", [False, True])
def test_channel_coupling_keeps_one_half(x: Tensor, change_first: bool) -> None:
    coupling = moved(ChannelCoupling(ConvNet(C // 2, C, 8), C, change_first))
    same = (coupling(x)[0] == x).flatten(2).all(2)
    halves = [same[:, : C // 2], same[:, C // 2 :]]
    assert halves[not change_first].logical_not().all()
    assert halves[change_first].all()


@pytest.mark.parametrize("change_first", [False, True])
def test_checkerboard_coupling_keeps_one_colour(x: Tensor, change_first: bool) -> None:
    coupling = moved(CheckerboardCoupling(ResidualNet(C, 2 * C, 8, 1), SHAPE, change_first))
    same = coupling(x)[0] == x
    colour = (torch.arange(SHAPE[1])[:, None] + torch.arange(SHAPE[2])) % 2
    assert torch.equal(same, (colour == int(change_first)).expand_as(same))


def test_coupling_shifts_then_scales_by_what_the_network_says() -> None:
    """Even channels of its output are log-scales, bounded by the learnt factor, odd ones are shifts."""

    class Known(nn.Module):
        def forward(self, kept: Tensor) -> Tensor:
            return torch.tensor([0.3, 2.0, -1e9, 5.0]).view(1, 4, 1, 1).expand(len(kept), -1, 1, 1)

    coupling = ChannelCoupling(Known(), 4)
    y, log_det = coupling(torch.tensor([7.0, 8.0, 1.0, 2.0]).view(1, 4, 1, 1))
    first = math.tanh(0.3)
    torch.testing.assert_close(y.flatten(), torch.tensor([7.0, 8.0, 3 * math.exp(first), 7 * math.exp(-1.0)]))
    torch.testing.assert_close(log_det, torch.tensor([first - 1.0]))


def test_channel_coupling_refuses_an_odd_number_of_channels() -> None:
    with pytest.raises(ValueError, match="channels must be even, got 3"):
        ChannelCoupling(ConvNet(1, 3, 4), 3)
