"""VERA-PostNet: the uncertain cross-entropy of evidence, per sample, and the terms beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.ebm.test_vera import Points, fit, generator, sgd
from tests.models.ebm.test_vera_priornet import LOGITS, Y
from uncertainty_est.models.ebm.vera_postnet import VERAPostNet
from uncertainty_est.networks.fc import FC


def make(network: FC | None = None, **arguments: Any) -> VERAPostNet:
    network = network or FC([3], 3, hidden_dims=[8])
    options = {"optimizer": sgd(0.01), "generator_optimizer": sgd(0.01)}
    return VERAPostNet(network, generator(), **(options | arguments))


def test_the_class_loss_is_the_mean_over_samples_and_not_over_classes() -> None:
    """Harmonic sums: psi(6.5) - psi(3) of the first class."""
    assert make().class_loss(LOGITS, Y)["uce"].item() == pytest.approx(0.8701269953014659, rel=1e-6)
    twice = make().class_loss(LOGITS.expand(2, 3), Y.expand(2))
    assert twice["uce"].item() == pytest.approx(0.8701269953014659, rel=1e-6)


def test_the_class_loss_is_an_expectation() -> None:
    p = torch.distributions.Dirichlet(torch.tensor([3.0, 2.0, 1.5], dtype=torch.float64)).sample((200_000,))
    assert make().class_loss(LOGITS, Y)["uce"].item() == pytest.approx(-p[:, 0].log().mean().item(), abs=0.01)


def test_entropies_are_rewarded_on_data_and_on_samples() -> None:
    entropy = torch.distributions.Dirichlet(torch.tensor([3.0, 2.0, 1.5])).entropy().item()
    method = make(entropy_reg=0.5, w_neg_entropy_loss=0.25)
    assert method.class_loss(LOGITS, Y)["dirichlet_entropy"].item() == pytest.approx(-0.5 * entropy, rel=1e-5)
    assert method.sample_loss(LOGITS)["sample_entropy"].item() == pytest.approx(-0.25 * entropy, rel=1e-5)
    assert make().class_loss(LOGITS, Y).keys() == {"uce"}
    assert make().sample_loss(LOGITS) == {}


def test_losses_and_gradients_of_huge_logits_are_finite() -> None:
    for value in (-200.0, 100.0):
        logits = torch.tensor([[value, value - 5, 0.0]], requires_grad=True)
        method = make(entropy_reg=0.1, w_neg_entropy_loss=1.0)
        total = sum(method.class_loss(logits, Y).values()) + sum(method.sample_loss(logits).values())
        (gradient,) = torch.autograd.grad(total, logits)
        assert total.isfinite() and gradient.isfinite().all()


def test_training_scores_and_probabilities(batch: Points) -> None:
    x, y = batch
    method = make(entropy_reg=0.1, w_neg_entropy_loss=0.1, clf_weight=3.0)
    parts = method.energy_loss(x, y % 3, x)
    plain = method.class_loss(method.logits(x), y % 3)
    for name in ("uce", "dirichlet_entropy"):
        torch.testing.assert_close(parts[name], 3 * plain[name])
    fit(method, (x, y % 3), steps=2)
    prediction = method.predict(x)
    assert next(iter(prediction.scores)) == "p(x)"
    alpha = 1 + method.network(x).double().exp()
    assert prediction.probs is not None
    torch.testing.assert_close(prediction.probs, (alpha / alpha.sum(-1, keepdim=True)).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": FC([3], 1)}, "at least 2 classes"),
        ({"entropy_reg": -1.0}, "entropy_reg"),
        ({"w_neg_entropy_loss": -1.0}, "w_neg_entropy_loss"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)
