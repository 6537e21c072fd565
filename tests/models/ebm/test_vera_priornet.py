"""EPN-V: where the evidence goes, by golden values, and what its optional terms touch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.ebm.test_vera import Points, fit, generator, sgd
from uncertainty_est.measures import dirichlet_entropy
from uncertainty_est.models.ebm.vera_priornet import VERAPriorNet
from uncertainty_est.networks.fc import FC

# alpha = (3, 2, 1.5), evidence 3.5.
LOGITS = torch.tensor([[math.log(2), 0.0, -math.log(2)]], dtype=torch.float64)
Y = torch.tensor([0])


def make(network: FC | None = None, **arguments: Any) -> VERAPriorNet:
    network = network or FC([3], 3, hidden_dims=[8])
    options = {"optimizer": sgd(0.01), "generator_optimizer": sgd(0.01)}
    return VERAPriorNet(network, generator(), **(options | arguments))


def kl_gradient(**arguments: Any) -> Tensor:
    """Gradient of the class loss in the logits, ``[3]``."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(make(**arguments).class_loss(logits, Y)["kl"], logits)[0][0]


@pytest.mark.parametrize(
    ("strict", "target", "expected"),
    [(False, [3.5, 1, 1], 0.5200825757993883), (True, [4.5, 1, 1], 0.9382244473577966)],
)
def test_the_divergence_from_all_evidence_at_the_label(strict: bool, target: list[float], expected: float) -> None:
    method = make(strict_target=strict)
    torch.testing.assert_close(method.target(LOGITS, Y), torch.tensor([target], dtype=torch.float64))
    (loss,) = method.class_loss(LOGITS, Y).values()
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # parts of a loss are float32
    dirichlet = torch.distributions.Dirichlet
    alpha = dirichlet(torch.tensor([3.0, 2.0, 1.5], dtype=torch.float64))
    reference = torch.distributions.kl_divergence(alpha, dirichlet(torch.tensor(target, dtype=torch.float64)))
    assert reference.item() == pytest.approx(expected, abs=1e-9)


def test_evidence_is_exp_of_the_energy() -> None:
    alpha = make().alpha(LOGITS)
    torch.testing.assert_close(alpha.sum(-1) - 3, LOGITS.logsumexp(-1).exp())
    torch.testing.assert_close(make(alpha_fix=False).alpha(LOGITS).sum(-1), LOGITS.logsumexp(-1).exp())


def test_an_attached_target_lowers_misplaced_evidence_and_a_detached_one_raises_evidence() -> None:
    """The derivative in a shift of all logits: of what descends, its sign tells the direction."""
    attached, detached = (kl_gradient(detach_target=d).sum().item() for d in (False, True))
    assert attached == pytest.approx(1.3251354859489863, abs=1e-6)
    assert detached == pytest.approx(-0.3061675834647295, abs=1e-6)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_the_label_rises_against_the_others(detach: bool, strict: bool) -> None:
    gradient = kl_gradient(detach_target=detach, strict_target=strict)
    assert (gradient[0] < gradient[1:]).all()


def test_a_perfect_prediction_costs_nothing_with_a_strict_target() -> None:
    logits = torch.tensor([[math.log(10), -40.0, -40.0]], dtype=torch.float64)
    strict, reference = (make(strict_target=s).class_loss(logits, Y)["kl"].item() for s in (True, False))
    assert strict == pytest.approx(0, abs=1e-9)
    assert reference == pytest.approx(8.1e-3, abs=1e-4)


def test_a_given_concentration_is_the_target() -> None:
    target = make(concentration=2.0, target_concentration=50.0).target(LOGITS.expand(3, 3), torch.arange(3))
    torch.testing.assert_close(target, 2 + 48 * torch.eye(3, dtype=torch.float64))


def test_entropy_is_rewarded() -> None:
    plain, regularised = (sum(make(entropy_reg=w).class_loss(LOGITS, Y).values()).item() for w in (0.0, 0.5))
    assert regularised - plain == pytest.approx(-0.5 * dirichlet_entropy(make().alpha(LOGITS)).item(), rel=1e-5)


def test_losses_and_gradients_of_huge_logits_are_finite() -> None:
    for value in (-200.0, 100.0):
        logits = torch.tensor([[value, value - 5, 0.0]], requires_grad=True)
        method = make(entropy_reg=0.1, w_neg_sample_loss=1.0, w_neg_entropy_loss=1.0, strict_target=False)
        total = sum(method.class_loss(logits, Y).values()) + sum(method.sample_loss(logits).values())
        (gradient,) = torch.autograd.grad(total, logits)
        assert total.isfinite() and gradient.isfinite().all()


def test_terms_of_samples_flatten_them() -> None:
    method = make(w_neg_sample_loss=0.5, w_neg_entropy_loss=0.25)
    parts = method.sample_loss(LOGITS)
    flat = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64))
    alpha = torch.distributions.Dirichlet(method.alpha(LOGITS)[0])
    assert parts["sample_kl"].item() == pytest.approx(0.5 * torch.distributions.kl_divergence(alpha, flat).item())
    assert parts["sample_entropy"].item() == pytest.approx(-0.25 * alpha.entropy().item())
    assert make().sample_loss(LOGITS) == {}
    logits = LOGITS.clone().requires_grad_()
    for part in method.sample_loss(logits).values():
        (gradient,) = torch.autograd.grad(part, logits, retain_graph=True)
        assert gradient.sum() > 0, "evidence of samples falls"


def test_terms_of_samples_touch_the_network_alone(batch: Points) -> None:
    method = make(w_neg_sample_loss=1.0, w_neg_entropy_loss=1.0)
    x, y = batch
    parts = method.loss({"id": (x, y % 3)})
    assert {"kl", "sample_kl", "sample_entropy"} <= parts.keys()
    torch.stack(list(parts.values())).sum().backward()
    assert all(p.grad is not None for p in method.network.parameters())
    assert all(p.grad is None for p in method.generator.parameters())


def test_training_scores_and_probabilities(batch: Points) -> None:
    x, y = batch
    method = make(clf_weight=2.0)
    torch.testing.assert_close(
        method.energy_loss(x, y % 3, x)["kl"], 2 * method.class_loss(method.logits(x), y % 3)["kl"]
    )
    fit(method, (x, y % 3), steps=2)
    prediction = method.predict(x)
    assert next(iter(prediction.scores)) == "p(x)"
    alpha = method.alpha(method.network(x))
    assert prediction.probs is not None
    torch.testing.assert_close(prediction.probs, (alpha / alpha.sum(-1, keepdim=True)).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": FC([3], 1)}, "at least 2 classes"),
        ({"concentration": 0.0}, "concentration"),
        ({"target_concentration": -1.0}, "target_concentration"),
        ({"entropy_reg": -1.0}, "entropy_reg"),
        ({"w_neg_sample_loss": -1.0}, "w_neg_sample_loss"),
        ({"p_control": -1.0}, "p_control"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)
