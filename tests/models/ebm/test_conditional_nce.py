"""Conditional noise-contrastive estimation: it finds the log-density up to a constant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from uncertainty_est.models.ebm.conditional_nce import ConditionalNCE
from uncertainty_est.networks.fc import FC


class Slope(nn.Module):
    """One logit, 2 x_0 + b."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, :1] + self.head.bias


def network(num_classes: int = 1) -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[1], num_classes=num_classes, hidden_dims=[32, 32], activation="silu")


def loss(method: ConditionalNCE, x: Tensor) -> dict[str, Tensor]:
    method.generator = torch.Generator().manual_seed(0)
    return method.loss({"id": (x, torch.zeros(len(x)).long())})


def test_noise_std_is_a_standard_deviation() -> None:
    """For F of slope 2 the log-ratios are -2 u, whose mean softplus is known for u ~ N(0, 0.09)."""
    method = ConditionalNCE(Slope(), noise_std=0.3, num_noise=50)
    u = torch.randn(1_000_000, generator=torch.Generator().manual_seed(1)) * 0.3
    expected = nn.functional.softplus(2 * u).mean().item()
    assert loss(method, torch.randn(10_000, 1))["cnce"].item() == pytest.approx(expected, rel=2e-3)


def test_a_constant_changes_the_control_term_only() -> None:
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    method = ConditionalNCE(network(), p_control_weight=0.1)
    before = loss(method, x)
    with torch.no_grad():
        method.network.head.bias += 3.0
    after = loss(method, x)
    torch.testing.assert_close(after["cnce"], before["cnce"], atol=1e-5, rtol=0)
    assert after["p_control"] > before["p_control"]


def test_the_control_term_is_the_mean_over_data_and_copies() -> None:
    method = ConditionalNCE(Slope(), noise_std=1e-6, p_control_weight=0.5)
    with torch.no_grad():
        method.network.head.bias.zero_()
    x = torch.tensor([[1.0], [-3.0]])
    assert loss(method, x)["p_control"].item() == pytest.approx(0.5 * (2 + 6) / 2, rel=1e-4)
    assert "p_control" not in loss(ConditionalNCE(Slope()), x)


def test_it_learns_the_log_density_up_to_a_constant() -> None:
    data = Normal(1.0, 0.5)
    method = ConditionalNCE(network(), noise_std=0.5)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(method.network.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        method.loss({"id": (data.sample((256, 1)), torch.zeros(256))})["cnce"].backward()
        optimizer.step()
        decay.step()
    x = torch.linspace(0, 2, 21).unsqueeze(-1)
    learned, expected = method.get_ood_scores(x)["p(x)"], data.log_prob(x).squeeze(-1)
    torch.testing.assert_close(learned - learned.mean(), expected - expected.mean(), atol=0.25, rtol=0)


def test_every_parameter_has_a_gradient() -> None:
    method = ConditionalNCE(network())
    loss(method, torch.randn(16, 1))["cnce"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_with_classes_there_is_a_class_loss() -> None:
    x = torch.randn(8, 1)
    method = ConditionalNCE(network(2), clf_weight=3.0)
    expected = 3.0 * nn.functional.cross_entropy(method.network(x), torch.zeros(8).long())
    torch.testing.assert_close(loss(method, x)["ce"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"num_noise": 0}, "num_noise must be at least 1"),
        ({"p_control_weight": -1.0}, "p_control_weight must be at least 0"),
    ],
)
def test_senseless_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalNCE(network(), **arguments)
