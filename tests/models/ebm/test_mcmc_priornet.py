"""Energy-Prior Networks with chains: density and evidence are the same number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uncertainty_est.models.ebm.mcmc_priornet import MCMCPriorNet
from uncertainty_est.networks.fc import FC
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.samplers.sgld import SGLD

LOGITS = torch.tensor([[math.log(2.0), 0.0, -math.log(2.0)]], dtype=torch.float64)


def make(num_classes: int = 3, alpha_fix: bool = True, entropy_reg: float = 0.0) -> MCMCPriorNet:
    torch.manual_seed(0)
    network = FC([2], num_classes, hidden_dims=[16])
    buffer = ReplayBuffer([2], size=90, num_classes=num_classes)
    return MCMCPriorNet(network, SGLD(steps=2), buffer, alpha_fix=alpha_fix, entropy_reg=entropy_reg)


@pytest.mark.parametrize("alpha_fix", [True, False])
def test_the_density_is_the_evidence(alpha_fix: bool) -> None:
    method = make(alpha_fix=alpha_fix)
    x = torch.randn(20, 2)
    alpha = method.alpha(method.logits(x))
    evidence = alpha.sum(-1) - (3.0 if alpha_fix else 0.0)
    scores = method.predict(x).scores
    torch.testing.assert_close(evidence.log().float(), scores["p(x)"], atol=1e-5, rtol=1e-5)
    assert next(iter(scores)) == "p(x)"
    probs = method.predict(x).probs
    assert probs is not None
    torch.testing.assert_close(probs, (alpha / alpha.sum(-1, keepdim=True)).float())


def test_golden_values() -> None:
    """The uncertain cross-entropy is the mean over samples, not over samples and classes."""
    method = make(entropy_reg=0.5)
    parts = method.class_loss(LOGITS, torch.tensor([0]))
    assert float(parts["uce"]) == pytest.approx(0.8701269953014659, abs=1e-12)
    assert float(parts["entropy"]) == pytest.approx(0.5 * 1.1016054528173655, abs=1e-12)
    twice = method.class_loss(LOGITS.expand(2, 3), torch.tensor([0, 0]))
    assert float(twice["uce"]) == pytest.approx(0.8701269953014659, abs=1e-12)


def test_the_loss_has_both_sides_and_weights_them() -> None:
    method = make(entropy_reg=0.1)
    method.pyxce = 1 / 3
    x, y = torch.randn(30, 2), torch.randint(3, (30,))
    parts = method.loss({"id": (x, y)})
    assert list(parts) == ["density", "control", "uce", "entropy"]
    torch.testing.assert_close(parts["uce"], method.class_loss(method.logits(x), y)["uce"] / 3)


@pytest.mark.parametrize("size", [0.0, 20.0, 60.0, 200.0, 1e6])
def test_loss_and_gradient_are_finite_for_any_evidence(size: float) -> None:
    logits = (LOGITS + torch.tensor([[size], [-size]])).requires_grad_()
    parts = make(entropy_reg=1e-4).class_loss(logits, torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(torch.stack(list(parts.values())).sum(), logits)
    assert gradient.isfinite().all()
    assert float(gradient.abs().max()) < 10
    assert all(bool(part.isfinite()) for part in parts.values())


def test_the_class_loss_moves_evidence_to_the_label() -> None:
    logits = Tensor([[0.0, 0.0, 0.0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(make().class_loss(logits, torch.tensor([1]))["uce"], logits)
    assert float(gradient[0, 1]) < 0 < float(gradient[0, 0])
    torch.testing.assert_close(gradient[0, 0], gradient[0, 2])


def test_a_single_logit_is_no_dirichlet_distribution() -> None:
    network = FC([2], 1, hidden_dims=[4])
    with pytest.raises(ValueError, match="network.num_classes is 1"):
        MCMCPriorNet(network, SGLD(), ReplayBuffer([2], size=9), pyxce=0.0, class_cond_p_x_sample=False)
