"""Prior Networks and evidential networks: golden losses, directions, extreme logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.base import Method
from uncertainty_est.models.dirichlet import DirichletNetwork
from uncertainty_est.models.edl import EDL
from uncertainty_est.models.priornet import PriorNet
from uncertainty_est.networks.fc import FC

LOGITS = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64).log()  # (ln 2, 0, -ln 2)
LABEL = torch.tensor([0])


def descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Free logits after many steps down a loss."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Rprop([logits], lr=0.01)  # by signs only: gradients get tiny, and must still count
    for _ in range(100):
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    return logits.detach()


@pytest.mark.parametrize(
    ("reverse", "known", "flat"),
    [(True, 78.87421165283838, 0.40845826225743765), (False, 10.029438513725559, 0.8529500636275031)],
)
def test_golden_prior_network_losses(network: FC, reverse: bool, known: float, flat: float) -> None:
    method = PriorNet(network, reverse=reverse)
    alpha = method.concentrations(LOGITS)
    torch.testing.assert_close(alpha, torch.tensor([[3.0, 2.0, 1.5]], dtype=torch.float64))
    parts = method.loss_from(alpha, LABEL, alpha)
    assert parts["id"].item() == pytest.approx(known / 100, abs=1e-7)
    assert parts["ood"].item() == pytest.approx(flat / 100, abs=1e-7)


def test_scores_and_probabilities_of_the_golden_logits(network: FC) -> None:
    class Fixed(PriorNet):
        def alpha(self, x: Tensor) -> Tensor:
            return self.concentrations(LOGITS)

    prediction = Fixed(network).predict(torch.zeros(1, 3))
    expected = {
        "MI": -0.1370951152976173,
        "max p(y|x)": 0.46153846153846156,
        "Entropy": -1.0579054247036734,
        "Expected entropy": -0.9208103094060561,
        "EPKL": -0.3076923076923077,
        "Differential entropy": 1.1016054528173655,
        "log alpha0": 1.8718021769015913,
    }
    assert list(prediction.scores) == list(expected)
    for name, value in expected.items():
        assert prediction.scores[name].shape == (1,)
        assert prediction.scores[name].item() == pytest.approx(value, rel=1e-6), name
    torch.testing.assert_close(prediction.probs, torch.tensor([[3.0, 2.0, 1.5]]) / 6.5)


def test_outliers_push_all_evidence_away(network: FC) -> None:
    """With ``alpha_fix`` the flat target is reached only as every logit goes to minus infinity."""
    torch.manual_seed(0)
    method, y = PriorNet(network), torch.zeros(20, dtype=torch.long)

    def loss(logits: Tensor) -> Tensor:
        alpha = method.concentrations(logits)
        return method.loss_from(alpha, y, alpha)["ood"]

    logits = descend(loss, torch.randn(20, 4, dtype=torch.float64))
    assert (logits < -5).all()
    assert loss(logits) < 1e-5


def test_golden_evidential_loss(network: FC) -> None:
    method = EDL(network, annealing_epochs=0)
    alpha = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    parts = method.loss_from(alpha, LABEL, None)
    # mean (1/2, 1/3, 1/6): squared error 1/4 + 1/9 + 1/36, variances (1/4 + 2/9 + 5/36) / 7
    assert parts["brier"].item() == pytest.approx(14 / 36 + (22 / 36) / 7)
    # KL(Dir(1, 2, 1) || Dir(1, 1, 1)) = ln(Γ(4) / Γ(3)) + ψ(2) - ψ(4)
    assert parts["kl"].item() == pytest.approx(torch.tensor(3.0).log().item() - 1 / 2 - 1 / 3)


def test_evidence_for_the_right_class_is_not_shrunk(network: FC) -> None:
    torch.manual_seed(0)
    method, y = EDL(network, annealing_epochs=0), torch.arange(10) % 4

    def loss(logits: Tensor) -> Tensor:
        return method.loss_from(method.concentrations(logits), y, None)["kl"]

    start = torch.randn(10, 4, dtype=torch.float64)
    logits, right = descend(loss, start), F.one_hot(y, 4).bool()
    assert torch.equal(logits[right], start[right])
    assert (method.concentrations(logits)[~right] < 1.05).all()


@pytest.mark.parametrize("evidence", ["elu", "softplus", "relu", "exp"])
def test_evidence_is_never_negative(network: FC, evidence: str) -> None:
    logits = torch.linspace(-100, 88, 50, dtype=torch.float64).view(-1, 1)
    alpha = EDL(network, evidence=evidence).concentrations(logits)
    assert (alpha >= 1).all()
    assert alpha.isfinite().all()
    assert (alpha.diff(dim=0) >= 0).all()


def test_the_divergence_is_annealed(network: FC, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    method = EDL(network, annealing_epochs=10)
    weights = []
    for epoch in (0, 5, 10, 50):
        monkeypatch.setattr(Method, "current_epoch", epoch)
        weights.append(method.loss({"id": batch})["kl"].item())
    assert weights[0] == 0
    assert weights[1] == pytest.approx(weights[2] / 2)
    assert weights[2] == weights[3] > 0


@pytest.mark.parametrize("make", [PriorNet, lambda n: PriorNet(n, reverse=False, alpha_fix=False), EDL])
@pytest.mark.parametrize("scale", [0.0, 1e3, 1e6])
def test_loss_gradients_and_scores_are_finite_at_extreme_logits(
    make: type[DirichletNetwork], scale: float, network: FC, batch: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad():
        network.head.weight *= scale
    method = make(network)
    parts = method.loss({"id": batch, "ood": batch})
    torch.stack(list(parts.values())).sum().backward()
    assert all(part.isfinite() for part in parts.values())
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    prediction = method.predict(batch[0])
    assert all(score.isfinite().all() for score in prediction.scores.values())
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(40))


def test_order_of_classes_does_not_matter(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    order = torch.tensor([2, 0, 3, 1])
    method = PriorNet(network)
    before, loss = method.get_ood_scores(x), method.loss({"id": (x, y)})["id"]
    with torch.no_grad():
        network.head.weight.copy_(network.head.weight[order])
        network.head.bias.copy_(network.head.bias[order])
    after = method.get_ood_scores(x)
    for name, score in before.items():
        torch.testing.assert_close(after[name], score)
    torch.testing.assert_close(method.loss({"id": (x, order.argsort()[y])})["id"], loss)


def test_values_that_make_no_sense_are_refused(network: FC) -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 1"):
        PriorNet(network, target_concentration=0)
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        PriorNet(network, gamma=-1)
    with pytest.raises(ValueError, match="evidence must be one of .*, got 'sigmoid'"):
        EDL(network, evidence="sigmoid")
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        EDL(network, annealing_epochs=-1)
