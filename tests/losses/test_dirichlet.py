"""Dirichlet losses: golden values, torch.distributions, numerical expectations, and extreme concentrations."""

from __future__ import annotations

import pytest
import torch
from scipy.special import polygamma
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from uncertainty_est.losses.dirichlet import (
    dirichlet_kl,
    expected_brier,
    expected_cross_entropy,
    uncertain_cross_entropy,
)
from uncertainty_est.measures import dirichlet_entropy


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.fixture
def alphas() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand((2, 50, 4), generator=generator, dtype=torch.float64)
    return tuple((10 ** (4 * draw - 2)).unbind())  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("alpha", "beta", "value"),
    [
        ((3, 2, 1), (1, 1, 1), 0.5511973816621554),
        ((1, 1, 1), (3, 2, 1), 1.098802618337844),
        ((101, 1, 1), (2, 1, 1), 5.497547605801397),
        ((2, 1, 1), (101, 1, 1), 75.0516661391025),
    ],
)
def test_golden_divergences(alpha: tuple[float, ...], beta: tuple[float, ...], value: float) -> None:
    assert dirichlet_kl(row(*alpha), row(*beta)).item() == pytest.approx(value, abs=1e-9)


def test_golden_entropies_and_cross_entropies() -> None:
    assert dirichlet_entropy(row(3, 2, 1)).item() == pytest.approx(-1.2443445622221008, abs=1e-9)
    assert dirichlet_entropy(row(1, 1, 1)).item() == pytest.approx(-0.6931471805599453, abs=1e-9)
    assert expected_cross_entropy(row(3, 2, 1), torch.tensor([0])).item() == pytest.approx(1 / 3 + 1 / 4 + 1 / 5)
    assert expected_cross_entropy(row(3, 2, 1), torch.tensor([2])).item() == pytest.approx(2.283333333333333)


def test_divergence_and_entropy_are_those_of_torch(alphas: tuple[Tensor, Tensor]) -> None:
    a, b = alphas
    torch.testing.assert_close(dirichlet_kl(a, b), kl_divergence(Dirichlet(a), Dirichlet(b)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dirichlet_entropy(a), Dirichlet(a).entropy(), rtol=1e-9, atol=1e-9)


def test_divergence_is_zero_only_between_equals(alphas: tuple[Tensor, Tensor]) -> None:
    a, b = alphas
    torch.testing.assert_close(dirichlet_kl(a, a), torch.zeros(50, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (dirichlet_kl(a, b) > 0).all()


def test_expectations_are_those_of_samples() -> None:
    torch.manual_seed(0)
    alpha, y = row(3.0, 0.7, 1.5), torch.tensor([1])
    p = Dirichlet(alpha[0]).sample((400_000,))
    cross_entropy, brier = -p[:, 1].log(), (torch.tensor([0.0, 1.0, 0.0]) - p).square().sum(-1)
    for expected, sampled in (
        (expected_cross_entropy(alpha, y), cross_entropy),
        (expected_brier(alpha, y), brier),
    ):
        error = 4 * sampled.std() / len(sampled) ** 0.5
        assert abs(expected.item() - sampled.mean().item()) < error


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e5, 9.9e5, 1.1e6, 1e9, 1e12])
def test_values_and_gradients_are_finite_and_continuous_at_any_scale(scale: float) -> None:
    alpha = (scale * row(3, 2, 1)).requires_grad_()
    y = torch.tensor([1])
    target = row(1, 101, 1)
    losses = [expected_cross_entropy(alpha, y), expected_brier(alpha, y), dirichlet_kl(alpha, target)]
    losses += [dirichlet_kl(target, alpha), dirichlet_entropy(alpha)]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), alpha, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
    if scale >= 1e5:  # far out, E[-ln p_y] is -ln of the mean plus (1/a - 1/a0) / 2
        a_y, a_0 = 2 * scale, 6 * scale
        expected = torch.tensor(3.0, dtype=torch.float64).log() + (1 / a_y - 1 / a_0) / 2
        torch.testing.assert_close(losses[0][0].detach(), expected, rtol=1e-9, atol=0)


def test_gradients_agree_with_finite_differences() -> None:
    y = torch.tensor([1, 0])
    alpha = torch.tensor([[3.0, 2.0, 1.0], [2.0e6, 3.0e6, 4.0]], dtype=torch.float64, requires_grad=True)
    small = alpha[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: expected_cross_entropy(a, y[:1]), small)
    assert torch.autograd.gradcheck(lambda a: dirichlet_kl(a, row(1, 4, 2)), small)
    assert torch.autograd.gradcheck(lambda a: dirichlet_entropy(a), small)
    # Across the switch to the series: relative steps, since the derivative is of order 1 / alpha.
    (gradient,) = torch.autograd.grad(expected_cross_entropy(alpha, y).sum(), alpha)
    step = 1e-3 * alpha[1, 0].item()
    shift = torch.zeros_like(alpha)
    shift[1, 0] = step
    with torch.no_grad():
        up, down = expected_cross_entropy(alpha + shift, y)[1], expected_cross_entropy(alpha - shift, y)[1]
    assert gradient[1, 0].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4)


def test_both_terms_of_the_uncertain_cross_entropy_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    alpha = (3 * torch.randn(200, 4, generator=generator, dtype=torch.float64)).exp() + 1e-3
    y = torch.randint(4, (200,), generator=generator)
    cross_entropy, entropy = uncertain_cross_entropy(alpha, y)
    torch.testing.assert_close(cross_entropy, expected_cross_entropy(alpha, y), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(entropy, torch.distributions.Dirichlet(alpha).entropy(), atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6, 1e12, 1e30])
def test_uncertain_cross_entropy_has_exact_finite_gradients(scale: float) -> None:
    """d/da_c [psi(a0) - psi(a_y)] = psi'(a0) - [c = y] psi'(a_y), at any size of alpha."""
    alpha = (scale * torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)).requires_grad_()
    cross_entropy, entropy = uncertain_cross_entropy(alpha, torch.tensor([1]))
    (grad,) = torch.autograd.grad(cross_entropy.sum(), alpha, retain_graph=True)
    of_total, of_label = (float(polygamma(1, a)) for a in (6 * scale, 2 * scale))
    expected = torch.tensor([[of_total, of_total - of_label, of_total]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=0)
    (grad,) = torch.autograd.grad(entropy.sum(), alpha)
    assert grad.isfinite().all()


def test_uncertain_cross_entropy_is_an_expectation() -> None:
    alpha = torch.tensor([[3.0, 2.0, 1.0], [0.5, 4.0, 2.0]], dtype=torch.float64)
    torch.manual_seed(0)
    draws = -torch.distributions.Dirichlet(alpha).sample((200_000,)).log()
    for y in range(3):
        value, _ = uncertain_cross_entropy(alpha, torch.full((2,), y))
        error = draws[..., y].std(0) / len(draws) ** 0.5
        assert ((draws[..., y].mean(0) - value).abs() < 4 * error).all()
