"""Sliced score matching as a method: its objective, its gradients, and validation without gradients around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ebm.ssm import SSM
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.wide_resnet import WideResNet


class Gaussian(nn.Module):
    """One logit, -|x|^2 / (2 s^2) + b."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.log_variance = nn.Parameter(torch.tensor(variance).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.head.bias - x.square().flatten(1).sum(1, keepdim=True) / (2 * self.log_variance.exp())


def smooth(num_classes: int) -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[3], num_classes=num_classes, hidden_dims=[16, 16], activation="silu")


def signs(n: int) -> Tensor:
    return 2.0 * torch.randint(2, (n, 3), generator=torch.Generator().manual_seed(0)) - 1


def test_golden_value_whatever_the_number_of_slices() -> None:
    x = 1.5**0.5 * signs(10)
    for particles in (1, 4):
        method = SSM(Gaussian(2.0), slices="rademacher", num_particles=particles)
        assert method.loss({"id": (x, torch.zeros(10))})["ssm"].item() == pytest.approx(-0.9375, rel=1e-6)
    weighted = SSM(Gaussian(2.0), slices="rademacher", ssm_weight=0.1)
    assert weighted.loss({"id": (x, torch.zeros(10))})["ssm"].item() == pytest.approx(-0.09375, rel=1e-6)


def test_more_slices_are_the_same_in_expectation_with_less_scatter() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))

    def draws(particles: int) -> Tensor:
        method = SSM(smooth(4), num_particles=particles)
        method.generator = torch.Generator().manual_seed(1)
        return torch.stack([method.loss({"id": (x, torch.zeros(50).long())})["ssm"].detach() for _ in range(100)])

    one, many = draws(1), draws(16)
    assert many.std() < one.std() / 2
    assert abs(many.mean() - one.mean()) < 4 * one.std() / 10


def test_the_supervised_loss_adds_weighted_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    network = smooth(4)
    parts = SSM(network, clf_weight=7.0).loss({"id": (x, y)})
    assert list(parts) == ["ssm", "ce"]
    torch.testing.assert_close(parts["ce"], 7.0 * nn.functional.cross_entropy(network(x), y))
    assert list(SSM(smooth(1)).loss({"id": (x, y)})) == ["ssm"]


@pytest.mark.parametrize("num_classes", [1, 4])
def test_every_parameter_has_a_gradient(num_classes: int, batch: tuple[Tensor, Tensor]) -> None:
    """DDP waits for all of them; that of the last bias of a single logit is zero."""
    network = smooth(num_classes)
    SSM(network).loss({"id": batch})["ssm"].backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    if num_classes == 1:
        assert network.head.bias.grad.abs().max() < 1e-6


def test_images_of_several_channels() -> None:
    torch.manual_seed(0)
    network = WideResNet([3, 8, 8], 2, depth=10, widen_factor=1, norm="none", activation="silu")
    method = SSM(network, num_particles=2, input_noise=0.1)
    sum(method.loss({"id": (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))}).values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_needs_no_gradients_around_it(mode: type, batch: tuple[Tensor, Tensor]) -> None:
    method = SSM(smooth(4), clf_weight=1.0, slices="rademacher")
    with mode():
        data = (batch[0].clone(), batch[1].clone())
        method.generator = torch.Generator().manual_seed(1)
        with scoring_mode(method):
            parts, probs = method.validate_batch({"id": data})
    method.generator = torch.Generator().manual_seed(1)
    expected = method.loss({"id": batch})
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name].detach())
        assert not part.requires_grad
    torch.testing.assert_close(probs, method.classify(batch[0]))
    assert all(parameter.grad is None for parameter in method.parameters())


def test_scores_are_the_density_first(batch: tuple[Tensor, Tensor]) -> None:
    network = smooth(4)
    scores = SSM(network).get_ood_scores(batch[0])
    assert list(scores) == ["p(x)", "max p(y|x)", "Entropy", "Max logit"]
    torch.testing.assert_close(scores["p(x)"], network(batch[0]).logsumexp(-1))
    assert list(SSM(smooth(1)).get_ood_scores(batch[0])) == ["p(x)"]


def test_it_learns_the_variance_of_normal_data() -> None:
    network = Gaussian(1.0)
    method = SSM(network, slices="gaussian")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(200):
        x = 1.7 * torch.randn(256, 3, generator=generator)
        optimizer.zero_grad()
        method.loss({"id": (x, torch.zeros(256))})["ssm"].backward()
        optimizer.step()
    assert network.log_variance.exp().item() == pytest.approx(1.7**2, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ssm_weight": -1.0}, "ssm_weight must be at least 0"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"slices": "radermacher"}, "slices must be one of 'gaussian', 'rademacher'"),
        ({"clf_weight": -1.0}, "clf_weight must be at least 0"),
    ],
)
def test_senseless_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSM(smooth(4), **arguments)
