"""Noise-contrastive estimation: it finds the normalised log-density, which is known here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from uncertainty_est.densities.noise import DiagonalNormal, UniformBox
from uncertainty_est.models.ebm.nce import NCE
from uncertainty_est.networks.fc import FC

DATA = Normal(1.0, 0.5)


class NoiseModel(nn.Module):
    """One logit, the log-density of the noise."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.noise.log_prob(x).unsqueeze(-1)  # type: ignore[operator]


def one_logit(num_classes: int = 1) -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[1], num_classes=num_classes, hidden_dims=[32, 32], activation="silu")


def train(method: NCE, steps: int = 300) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(method.network.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        method.loss({"id": (DATA.sample((256, 1)), torch.zeros(256))})["nce"].backward()
        optimizer.step()
        decay.step()


@pytest.mark.parametrize(
    ("noise", "ratio"),
    [
        (DiagonalNormal([1], mean=0.0, std=2.0), 1),
        (DiagonalNormal([1], mean=0.0, std=2.0), 3),
        (UniformBox([1], low=-1.5, high=3.5), 1),
    ],
    ids=["normal", "three of them each", "box"],
)
def test_it_learns_the_normalised_log_density(noise: nn.Module, ratio: int) -> None:
    method = NCE(one_logit(), noise, noise_ratio=ratio)  # type: ignore[arg-type]
    train(method)
    x = torch.linspace(0, 2, 21).unsqueeze(-1)  # two deviations on each side
    learned, expected = method.get_ood_scores(x)["p(x)"], DATA.log_prob(x).squeeze(-1)
    torch.testing.assert_close(learned, expected, atol=0.25, rtol=0)
    assert (learned - expected).abs().mean() < 0.1


def test_a_model_of_the_noise_costs_ln_2_inside_and_nothing_is_infinite_outside() -> None:
    noise = UniformBox([2], low=0.0, high=1.0)
    method = NCE(NoiseModel(noise), noise)  # type: ignore[arg-type]
    inside = method.loss({"id": (torch.rand(8, 2), torch.zeros(8))})["nce"]
    assert inside.item() == pytest.approx(math.log(2), rel=1e-6)
    network = FC(data_shape=[2], num_classes=1, hidden_dims=[8])
    loss = NCE(network, noise).loss({"id": (torch.rand(8, 2) + 5, torch.zeros(8))})["nce"]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_constant_in_the_density_matters() -> None:
    """It is learned: at the optimum F is normalised, and a shift of it costs."""
    method = NCE(one_logit(), DiagonalNormal([1], mean=0.0, std=2.0))
    train(method, 200)
    x = DATA.sample((4096, 1))

    def loss() -> float:
        method.generator = torch.Generator().manual_seed(0)
        return method.loss({"id": (x, torch.zeros(4096))})["nce"].item()

    best = loss()
    for shift in (-1.0, 2.0):
        with torch.no_grad():
            method.network.head.bias += shift
        assert loss() > best


def test_with_classes_there_is_a_class_loss() -> None:
    x, y = torch.randn(8, 1), torch.tensor([0, 1] * 4)
    network = one_logit(2)
    parts = NCE(network, DiagonalNormal([1], mean=0.0, std=2.0), clf_weight=3.0).loss({"id": (x, y)})
    torch.testing.assert_close(parts["ce"], 3.0 * nn.functional.cross_entropy(network(x), y))


def test_draws_come_from_the_methods_own_generator() -> None:
    method = NCE(one_logit(), UniformBox([1], low=-1.0, high=1.0))
    batch = {"id": (torch.rand(8, 1), torch.zeros(8))}
    method.generator = torch.Generator().manual_seed(0)
    before = torch.random.get_rng_state()
    first = method.loss(batch)["nce"]
    assert torch.equal(before, torch.random.get_rng_state())
    method.generator.manual_seed(0)
    assert torch.equal(method.loss(batch)["nce"], first)


def test_no_noise_is_no_contrast() -> None:
    with pytest.raises(ValueError, match="noise_ratio must be at least 1, got 0"):
        NCE(one_logit(), UniformBox([1]), noise_ratio=0)
