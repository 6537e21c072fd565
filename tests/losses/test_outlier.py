"""Losses on outliers: golden values, directions of their gradients, and where they vanish."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from uncertainty_est.losses.outlier import CONFIDENCE_LOSSES, energy_hinge, max_log_prob, uniform_cross_entropy


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_golden_hinge() -> None:
    """Log-sum-exps of 20 on data and of 10 on outliers, margins -23 and -5."""
    hinge_in, hinge_out = energy_hinge(tensor(-20.0), tensor(-10.0), -23.0, -5.0)
    assert (hinge_in.item(), hinge_out.item()) == pytest.approx((9.0, 25.0))
    assert 0.1 * (hinge_in + hinge_out).item() == pytest.approx(3.4)


def test_data_are_pushed_to_low_energies_and_outliers_to_high_ones() -> None:
    energy_in, energy_out = tensor(-20.0, -22.0), tensor(-10.0, -6.0)
    sum(energy_hinge(energy_in, energy_out, -23.0, -5.0)).backward()  # type: ignore[union-attr]
    assert (energy_in.grad > 0).all(), "descent lowers them"
    assert (energy_out.grad < 0).all(), "descent raises them"
    torch.testing.assert_close(energy_in.grad, tensor(3.0, 1.0).detach())  # 2 h / B


def test_no_loss_and_no_gradient_where_the_margins_are_met() -> None:
    energy_in, energy_out = tensor(-23.0, -40.0), tensor(-5.0, 3.0)
    total = sum(energy_hinge(energy_in, energy_out, -23.0, -5.0))
    total.backward()  # type: ignore[union-attr]
    assert total == 0
    assert not energy_in.grad.any()
    assert not energy_out.grad.any()


def test_means_are_taken_separately() -> None:
    """More outliers than data do not weigh more."""
    once = energy_hinge(tensor(-20.0), tensor(-10.0, -7.0), -23.0, -5.0)
    more = energy_hinge(tensor(-20.0), tensor(-10.0, -7.0, -7.0, -10.0), -23.0, -5.0)
    torch.testing.assert_close(torch.stack(once), torch.stack(more))


def test_golden_exposure() -> None:
    assert 0.5 * uniform_cross_entropy(torch.tensor([[1.0, 2.0, 3.0]]).double()).item() == pytest.approx(
        0.7038029822221903, abs=1e-9
    )


def test_it_is_the_divergence_from_the_uniform_distribution() -> None:
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = Categorical(torch.full((5,), 0.2, dtype=torch.float64))
    divergence = kl_divergence(uniform, Categorical(logits=logits))
    torch.testing.assert_close(uniform_cross_entropy(logits), math.log(5) + divergence)


def test_least_where_all_logits_are_equal() -> None:
    logits = torch.full((1, 5), 3.0, dtype=torch.float64, requires_grad=True)
    loss = uniform_cross_entropy(logits)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(5))
    torch.testing.assert_close(logits.grad, torch.zeros(1, 5, dtype=torch.float64))
    torch.testing.assert_close(uniform_cross_entropy(logits + 1e3), loss)


def test_descent_flattens_predictions() -> None:
    logits = torch.tensor([[4.0, 0.0, -1.0]], requires_grad=True)
    uniform_cross_entropy(logits).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - 1 / 3)
    assert logits.grad[0, 0] > 0, "the largest logit falls"


def test_the_logarithm_of_the_confidence() -> None:
    logits = 5 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(max_log_prob(logits), logits.softmax(-1).amax(-1).log())
    torch.testing.assert_close(max_log_prob(torch.zeros(1, 5)), torch.tensor([-math.log(5)]))
    assert max_log_prob(torch.tensor([[-1e5, 0.0, 1e5]])).item() == 0  # no overflow


@pytest.mark.parametrize("kind", CONFIDENCE_LOSSES)
def test_descent_flattens_the_logits_of_an_outlier(kind: str) -> None:
    logits = torch.tensor([[1.0, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CONFIDENCE_LOSSES[kind], logits)
    before = CONFIDENCE_LOSSES[kind](logits)
    before.sum().backward()
    assert logits.grad is not None and logits.grad[0, 0] > 0
    step = logits.detach() - 0.1 * logits.grad
    assert step.softmax(-1).amax() < logits.softmax(-1).amax()
