"""Confident classifiers: each player's loss and gradient by the paper's equations, and what they learn in the plane."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from uncertainty_est.data.loader import JointLoader, TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.confident_gan import ConfidentGAN
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator

Points = tuple[Tensor, Tensor]
SGD = partial(torch.optim.SGD, lr=0.1)


def make(batch_norm: bool = False, **options: Any) -> ConfidentGAN:
    torch.manual_seed(0)
    parts = {
        "network": FC([2], 3, hidden_dims=[8], activation="tanh"),
        "generator": FCGenerator(4, [2], hidden_dims=[8], batch_norm=batch_norm),
        "discriminator": FC([2], 1, hidden_dims=[8], activation="tanh"),
    }
    optimizers = dict.fromkeys(("optimizer", "generator_optimizer", "discriminator_optimizer"), SGD)
    return ConfidentGAN(**{**parts, **optimizers, **options})


@pytest.fixture
def points() -> Points:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 2, generator=generator), torch.randint(3, (32,), generator=generator)


def fit(method: ConfidentGAN, points: Points, epochs: int = 1, **options: Any) -> pl.Trainer:
    split = Split(*points, torch.arange(len(points[0])), "all")
    loader = JointLoader(TensorLoader(split, batch_size=64))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, **{**quiet, **options})
    trainer.fit(method, loader, loader)
    return trainer


def by_the_equations(method: ConfidentGAN, points: Points, samples: Tensor) -> dict[str, Tensor]:
    x, y = points
    uniform = Categorical(torch.full((len(samples), 3), 1 / 3))
    divergence = kl_divergence(uniform, Categorical(logits=method.network(samples))).mean()
    of_data, of_samples = (method.discriminator(z).squeeze(-1).sigmoid() for z in (x, samples))
    return {
        "network": F.cross_entropy(method.network(x), y) + method.beta * divergence,
        "discriminator": -of_data.log().mean() - (1 - of_samples).log().mean(),
        "generator": -of_samples.log().mean() + method.beta * divergence,
    }


def test_every_players_loss_and_gradient_are_the_papers(points: Points) -> None:
    method = make(beta=0.7, mean=0.5, std=2.0)
    samples = method.draw(20)
    expected = by_the_equations(method, points, samples)
    losses = method.players_losses(*points, samples)
    for name, parts in losses.items():
        total = torch.stack(list(parts.values())).sum()
        if name != "generator":
            torch.testing.assert_close(total, expected[name])
        own = list(method.get_submodule(name).parameters())
        got = torch.autograd.grad(total, own, retain_graph=True)
        for gradient, wanted in zip(got, torch.autograd.grad(expected[name], own, retain_graph=True), strict=True):
            torch.testing.assert_close(gradient, wanted)
    others = [*method.network.parameters(), *method.discriminator.parameters()]
    surrogate = losses["generator"]["surrogate"]
    assert all(g is None for g in torch.autograd.grad(surrogate, others, allow_unused=True))


def test_a_batch_is_one_step_of_each_player_from_where_it_was(points: Points) -> None:
    method, twin = make(), make()
    trainer = fit(method, points)
    names = ("network", "discriminator", "generator")
    # The samples of the step are drawn by a generator that the seed and the rank decide.
    assert method._random is not None
    again = torch.Generator().manual_seed(method._random.initial_seed())
    expected = by_the_equations(twin, points, twin.draw(32, again))
    for name in names:
        own = list(twin.get_submodule(name).parameters())
        gradients = torch.autograd.grad(expected[name], own, retain_graph=True)
        for after, before, gradient in zip(method.get_submodule(name).parameters(), own, gradients, strict=True):
            torch.testing.assert_close(after, before - 0.1 * gradient)
    assert trainer.global_step == 1  # a batch counts once


def test_each_learning_rate_decays_once_an_epoch(points: Points) -> None:
    method = make(scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5))
    fit(method, points, epochs=2)
    assert [player.optimizer.param_groups[0]["lr"] for player in method._players.values()] == [0.025] * 3


def test_samples_come_from_their_random_numbers_alone_in_the_networks_space() -> None:
    method = make(batch_norm=True, mean=0.5, std=0.25)
    first, second = (method.sample(6, torch.Generator().manual_seed(k)) for k in (0, 0))
    assert torch.equal(first, second) and not first.requires_grad and method.training
    method.eval()
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, ((method.generator(z) - 0.5) / 0.25).detach())


@pytest.mark.parametrize("key", ["optimizer", "generator_optimizer", "discriminator_optimizer"])
def test_training_needs_all_three_optimizers(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"fixed\.model_config\.{key}: training needs an optimizer"):
        make(**{key: None}).configure_optimizers()


def test_senseless_arguments() -> None:
    with pytest.raises(ValueError, match="beta must be at least 0"):
        make(beta=-1.0)
    with pytest.raises(ValueError, match="discriminator must have num_classes 1, got 2"):
        make(discriminator=FC([2], 2))


@pytest.mark.slow
def test_it_becomes_uncertain_on_samples_that_move_towards_the_data() -> None:
    """Two classes 4 apart: the classifier alone is certain almost everywhere, also on the generator's samples."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(256) % 2
    x = 0.3 * torch.randn(256, 2, generator=generator) + torch.stack([4.0 * y - 2, torch.zeros(256)], -1)
    fast = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    optimizers = dict.fromkeys(("optimizer", "generator_optimizer", "discriminator_optimizer"), fast)

    def confidences(beta: float) -> tuple[float, float]:
        method = make(beta=beta, network=FC([2], 2, hidden_dims=[32, 32]), **optimizers)
        fit(method, (x, y), epochs=60)
        samples = method.sample(500, torch.Generator().manual_seed(5))
        known, unknown = (method.get_ood_scores(z)["max p(y|x)"].mean().item() for z in (x, samples))
        assert samples.norm(dim=1).mean() > 0.5  # not the start's, which are near 0
        return known, unknown

    known, unknown = confidences(beta=1.0)
    assert known > 0.9 and unknown < known - 0.2
    assert confidences(beta=0.0)[1] > unknown + 0.1
