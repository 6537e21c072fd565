"""Posterior Networks: evidence from counts and densities, the loss in closed form, extreme densities, persistence."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from uncertainty_est.densities.autoregressive import AutoregressiveFlows
from uncertainty_est.densities.mixture import GaussianMixtures
from uncertainty_est.densities.planar import PlanarFlows
from uncertainty_est.densities.radial import RadialFlows
from uncertainty_est.errors import NotFittedError
from uncertainty_est.models.postnet import PostNet
from uncertainty_est.networks.fc import FC

COUNTS = torch.tensor([40.0, 20.0, 10.0], dtype=torch.float64)


def make(density: Any = RadialFlows, counts: Tensor | None = COUNTS, **options: Any) -> PostNet:
    torch.manual_seed(0)
    network = FC(data_shape=[3], num_classes=2, hidden_dims=[16, 16])
    method = PostNet(network, density=density, num_classes=3, **options)
    if counts is not None:
        method.class_counts.copy_(counts)
    return method.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("density", [RadialFlows, PlanarFlows, AutoregressiveFlows, GaussianMixtures])
def test_evidence_is_count_times_density(density: Any, x: Tensor) -> None:
    method = make(density)
    with torch.no_grad():
        alpha = method.alpha(x)
        latent = method.batch_norm(method.network(x))
        expected = 1 + COUNTS * method.density.log_prob(latent).double().exp()
    torch.testing.assert_close(alpha, expected)
    assert alpha.dtype == torch.float64
    prediction = method.predict(x)
    torch.testing.assert_close(prediction.probs, (alpha / alpha.sum(-1, keepdim=True)).float())
    torch.testing.assert_close(prediction.scores["log max alpha"], alpha.amax(-1).log().float())
    torch.testing.assert_close(
        prediction.scores["max log p(z|y)"].double(), (((alpha - 1) / COUNTS).log()).amax(-1), atol=1e-4, rtol=1e-4
    )


def test_doubled_counts_double_the_evidence(x: Tensor) -> None:
    with torch.no_grad():
        once, twice = make().alpha(x), make(counts=2 * COUNTS).alpha(x)
    torch.testing.assert_close(twice - 1, 2 * (once - 1))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("id", [40, 20, 10]),
        ("one", [1, 1, 1]),
        ("log", [math.log(41), math.log(21), math.log(11)]),
        ("id_normalized", [4 / 7, 2 / 7, 1 / 7]),
        ("exp", [math.exp(40), math.exp(20), math.exp(10)]),
        ("parametrized", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_budgets(budget: str, expected: list[float]) -> None:
    torch.testing.assert_close(make(budget=budget).log_budget().exp(), torch.tensor(expected, dtype=torch.float64))


def test_a_learned_budget_is_learned(x: Tensor) -> None:
    method = make(budget="parametrized")
    loss = method.loss({"id": (x, torch.arange(12) % 3)})
    torch.stack(list(loss.values())).sum().backward()
    assert method.budget_logits.grad is not None and method.budget_logits.grad.abs().max() > 0


def test_a_class_without_samples_has_no_evidence(x: Tensor) -> None:
    method = make(counts=torch.tensor([40.0, 0.0, 10.0], dtype=torch.float64)).train()
    alpha = method.alpha(x)
    assert (alpha[:, 1] == 1).all()
    loss = method.loss({"id": (x, torch.arange(12) % 3)})
    torch.stack(list(loss.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("y", [0, 2])
def test_golden_loss(y: int) -> None:
    alpha = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    parts = make(entropy_weight=1e-5).loss_from(alpha, torch.tensor([y]), None)
    assert parts["uce"].item() == pytest.approx({0: 0.7833333333333332, 2: 2.283333333333333}[y], abs=1e-12)
    assert parts["entropy"].item() == pytest.approx(1e-5 * 1.2443445622221008, abs=1e-15)


@pytest.mark.parametrize("shift", [-1e6, -200.0, 0.0, 27.0, 80.0, 1e4])
def test_gradients_are_finite_from_underflow_to_overflow(shift: float, x: Tensor) -> None:
    """Concentrations from exactly 1 to 1e38: losses, gradients and scores stay finite."""
    method = make().train()
    original = method.density.log_prob
    method.density.log_prob = lambda z: original(z) + shift  # type: ignore[method-assign]
    parts = method.loss({"id": (x, torch.arange(12) % 3)})
    torch.stack(list(parts.values())).sum().backward()
    assert all(part.isfinite() for part in parts.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    prediction = method.predict(x)
    assert all(score.isfinite().all() for score in prediction.scores.values())
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(12))


def test_far_from_data_the_answer_is_flat_and_the_latent_density_still_ranks(x: Tensor) -> None:
    prediction = make().predict(torch.cat([1e4 * x, 1e5 * x]))
    torch.testing.assert_close(prediction.probs, torch.full((24, 3), 1 / 3))
    assert (prediction.scores["log alpha0"] == torch.tensor(3.0).log()).all()
    near, far = prediction.scores["max log p(z|y)"].chunk(2)
    assert (near > far).all()


def test_counts_are_saved_with_the_weights(x: Tensor) -> None:
    method, other = make(), make(counts=None)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.predict(x).probs, method.predict(x).probs)


def test_without_counts_it_says_so(x: Tensor) -> None:
    with pytest.raises(NotFittedError, match="does not know the class counts"):
        make(counts=None).predict(x)


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="budget must be one of 'id'.*'parametrized', got 'two'"):
        make(budget="two")
    with pytest.raises(ValueError, match="entropy_weight must be at least 0, got -1"):
        make(entropy_weight=-1)


def test_layers_of_the_density_are_configurable() -> None:
    assert make(partial(RadialFlows, num_layers=3)).density.centre.shape == (3, 2, 3, 1)
