"""VERA's two players: what each minimises, what it may change, and how its learning rate rises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from uncertainty_est.errors import ConfigError
from uncertainty_est.models.ebm.vera import VERA
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator
from uncertainty_est.samplers.hmc import HMCSampling
from uncertainty_est.samplers.vera import Draw, ImportanceSampling, LatentGenerator

Points = tuple[Tensor, Tensor]


def generator(batch_norm: bool = False) -> LatentGenerator:
    torch.manual_seed(1)
    return LatentGenerator(partial(FCGenerator, hidden_dims=[8, 8], batch_norm=batch_norm), [3], latent_dim=5)


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr)


def make(network: nn.Module, lrs: tuple[float, float, float] = (0.01, 0.02, 0.03), **arguments: Any) -> VERA:
    ebm, gen, posterior = (sgd(lr) for lr in lrs)
    options = {"optimizer": ebm, "generator_optimizer": gen, "posterior_optimizer": posterior}
    return VERA(network, arguments.pop("q", None) or generator(), **(options | arguments))  # type: ignore[arg-type]


@dataclass
class Repeat:
    """A loader that yields one batch again and again."""

    batch: Points
    times: int

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[dict[str, Points]]:
        return iter([{"id": self.batch}] * self.times)


def fit(method: VERA, batch: Points, steps: int = 1, epochs: int = 1, **options: Any) -> pl.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(method, Repeat(batch, steps), Repeat(batch, 1))
    return trainer


class Rates(pl.Callback):
    """Notes every optimizer's learning rate before each batch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


# ------------------------------------------------------------------------------------------------- what is minimised


def test_the_energys_loss_term_by_term(network: FC, batch: Points) -> None:
    method = make(
        network, px_weight=0.5, p_control=0.2, n_control=0.3, pg_control=0.4, clf_ent_weight=0.6, clf_weight=0.7
    )
    x, y = batch
    samples = torch.randn_like(x)
    parts = method.energy_loss(x, y, samples)
    inputs = x.clone().requires_grad_()
    known, unknown = network(inputs).logsumexp(-1), network(samples).logsumexp(-1)
    (gradient,) = torch.autograd.grad(known.sum(), inputs)
    log_p = network(x).log_softmax(-1)
    expected = {
        "density": 0.5 * (unknown.mean() - known.mean()),
        "control": 0.5 * (0.2 * (known**2).mean() + 0.3 * (unknown**2).mean()),
        "penalty": 0.5 * 0.4 * (gradient**2).sum(1).mean() / 2,
        "class_entropy": 0.5 * 0.6 * -(log_p.exp() * log_p).sum(1).mean(),
        "ce": 0.7 * -log_p.gather(1, y[:, None]).mean(),
    }
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    assert x.grad is None and not x.requires_grad


def test_the_gradient_penalty_of_a_linear_energy_is_its_slope(batch: Points) -> None:
    linear = FC([3], 1, hidden_dims=[])
    method = make(linear, pg_control=0.1)
    parts = method.energy_loss(*batch, torch.zeros(4, 3))
    w = linear.head.weight
    torch.testing.assert_close(parts["penalty"], 0.1 * w.square().sum() / 2)
    (gradient,) = torch.autograd.grad(parts["penalty"], w)
    torch.testing.assert_close(gradient, 0.1 * w)


def test_terms_without_weight_and_classes_without_classes_are_left_out(network: FC, batch: Points) -> None:
    samples = torch.zeros(4, 3)
    assert make(network, pg_control=0.0).energy_loss(*batch, samples).keys() == {"density", "ce"}
    single = make(FC([3], 1, hidden_dims=[8]), pg_control=0.0, clf_ent_weight=1.0)
    assert single.energy_loss(*batch, samples).keys() == {"density"}
    assert single.loss({"id": batch}).keys() == {"density"}


def test_the_energys_loss_reaches_the_network_alone(network: FC, batch: Points) -> None:
    method = make(network)
    torch.stack(list(method.loss({"id": batch}).values())).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None for p in [*method.generator.parameters(), *method.sampler.parameters()])


def test_the_generators_loss_reaches_the_generator_alone(network: FC) -> None:
    method = make(network)
    method.generator_loss(method.generator.draw(16)).backward()
    assert all(p.grad is not None for p in method.generator.parameters())
    assert all(p.grad is None for p in [*network.parameters(), *method.sampler.parameters()])


def test_the_generators_gradient_is_that_of_density_and_entropy(network: FC, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(network, entropy_weight=0.3)
    draw = method.generator.draw(16)
    c = torch.randn(16, 3)
    monkeypatch.setattr(method.sampler, "forward", lambda *_: (c, {}))
    parameters = list(method.generator.parameters())
    got = torch.autograd.grad(method.generator_loss(draw), parameters, retain_graph=True)
    objective = network(draw.x).logsumexp(-1).mean() + 0.3 * (c * draw.x).sum(1).mean()
    for one, other in zip(got, torch.autograd.grad(-objective, parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_without_weight_the_entropy_is_not_estimated(
    network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(network, entropy_weight=0.0)
    monkeypatch.setattr(method.sampler, "forward", lambda *_: pytest.fail("must not be called"))
    before = state(method.sampler)
    trainer = fit(method, batch, steps=3)
    assert len(trainer.optimizers) == 2
    assert not changed(method.sampler, before)
    draw = method.generator.draw(16)
    (ascent,) = torch.autograd.grad(network(draw.x).logsumexp(-1).sum(), draw.x, retain_graph=True)
    expected = torch.autograd.grad(-(ascent * draw.x).sum() / 16, method.generator.log_sigma, retain_graph=True)
    got = torch.autograd.grad(method.generator_loss(draw), method.generator.log_sigma)
    torch.testing.assert_close(got, expected)


# ---------------------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("player", ["network", "generator", "sampler"])
def test_each_optimizer_moves_its_own_parameters_only(player: str, network: FC, batch: Points) -> None:
    names = ["network", "generator", "sampler"]
    method = make(network, lrs=tuple(0.01 * (name == player) for name in names))  # type: ignore[arg-type]
    with torch.no_grad():
        method.generator.log_sigma.fill_(-2.0)  # away from its bounds
    before = {name: state(method.get_submodule(name)) for name in names}
    fit(method, batch, steps=2)
    assert [name for name in names if changed(method.get_submodule(name), before[name])] == [player]


def test_nothing_is_left_of_one_players_gradient_in_anothers(network: FC, batch: Points) -> None:
    """One step of plain gradient descent each: exactly the losses' gradients, of one draw of samples."""
    method = make(network, lrs=(0.1, 0.2, 0.3), pg_control=0.1, entropy_weight=0.5)
    draws: list[Draw] = []
    draw = method.generator.draw

    def remember(*args: Any) -> Draw:
        draws.append(draw(*args))
        return draws[-1]

    method.generator.draw = remember  # type: ignore[method-assign]
    twin = make(network.__class__([3], 4, hidden_dims=[16, 16]), pg_control=0.1)
    twin.network.load_state_dict(network.state_dict())
    before = state(network)
    fit(method, batch)
    assert len(draws) == 1
    total = torch.stack(list(twin.energy_loss(*batch, draws[0].x).values())).sum()
    gradients = torch.autograd.grad(total, list(twin.network.parameters()))
    for (name, value), gradient in zip(network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(value, before[name] - 0.1 * gradient)


@pytest.mark.parametrize(("ebm_iters", "generator_iters"), [(1, 1), (3, 1), (1, 2)])
def test_players_take_turns_and_batches_are_counted_once(
    ebm_iters: int, generator_iters: int, network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(network, ebm_iters=ebm_iters, generator_iters=generator_iters)
    turns: list[str] = []
    for name in ("energy_loss", "generator_loss"):
        original = getattr(method, name)

        def spy(*args: Any, name: str = name, original: Any = original) -> Any:
            turns.append(name)
            return original(*args)

        monkeypatch.setattr(method, name, spy)
    trainer = fit(method, batch, steps=6, max_steps=5)
    assert trainer.global_step == 5
    assert turns.count("energy_loss") == -(-5 // ebm_iters)
    assert turns.count("generator_loss") == -(-5 // generator_iters)


def test_each_learning_rate_rises_to_its_own_value_and_decays(network: FC, batch: Points) -> None:
    watch = Rates()
    decay = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2], gamma=0.3)
    method = make(network, lrs=(0.01, 0.02, 0.03), warmup_steps=4, generator_iters=2, scheduler=decay)
    fit(method, batch, steps=3, epochs=3, callbacks=[watch])
    rising = torch.tensor([[min(1, (step + 1) / 4) * lr for lr in (0.01, 0.02, 0.03)] for step in range(9)])
    rising[6:, :2] *= 0.3  # the proposal's rate does not decay
    torch.testing.assert_close(torch.tensor(watch.rates), rising)


def test_rates_fall_until_the_last_batch(network: FC, batch: Points) -> None:
    watch = Rates()
    lrs = (0.01, 0.02, 0.03)
    fit(make(network, lrs=lrs, warmup_steps=3, decay_from=0.5), batch, steps=4, epochs=2, callbacks=[watch])
    done = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3]) / 4  # of half a cosine
    factor = torch.tensor([1, 2, 3, 3, 3, 3, 3, 3]) / 3 * (0.01 + 0.99 * (1 + (torch.pi * done).cos()) / 2)
    torch.testing.assert_close(torch.tensor(watch.rates), factor[:, None] * torch.tensor(lrs))


def test_rates_that_fall_need_a_last_batch(network: FC, batch: Points) -> None:
    with pytest.raises(ConfigError, match="fixed.trainer_config.max_epochs: .* set max_epochs or max_steps"):
        fit(make(network, decay_from=0.5), batch, epochs=-1)


def test_gradients_are_clipped(network: FC, batch: Points) -> None:
    method = make(network, lrs=(1.0, 1.0, 1.0), gradient_clip_val=1e-3)
    before = state(network)
    fit(method, batch)
    moved = torch.cat([(value - before[name]).flatten() for name, value in network.named_parameters()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_sigma_stays_in_its_range_while_it_is_trained(network: FC, batch: Points) -> None:
    method = make(network, lrs=(0.0, 50.0, 0.0), entropy_weight=1.0)
    fit(method, batch)  # the entropy's gradient is about one for each dimension: far beyond the bound
    assert method.generator.log_sigma.exp().item() == pytest.approx(0.3)


def test_chains_can_estimate_the_entropy(network: FC, batch: Points) -> None:
    method = make(network, entropy_estimator="hmc")
    assert isinstance(method.sampler, HMCSampling)
    before = state(method.generator)
    trainer = fit(method, batch, steps=2)
    assert len(trainer.optimizers) == 2, "chains have no proposal to learn"
    assert changed(method.generator, before)
    assert {"train/generator/acceptance", "train/generator/step_size"} <= set(trainer.callback_metrics)


def test_a_proposal_without_optimizer_stays(network: FC, batch: Points) -> None:
    method = make(network, posterior_optimizer=None)
    before = state(method.sampler)
    fit(method, batch, steps=2)
    assert not changed(method.sampler, before)


def test_what_is_logged(network: FC, batch: Points) -> None:
    metrics = fit(make(network, p_control=0.1), batch).callback_metrics
    of_energy = {"loss", "density", "control", "penalty", "ce", "F/data", "F/samples", "gradient_penalty"}
    of_generator = {"generator/entropy_surrogate", "generator/sigma", "generator/ess", "F/gradient_at_samples"}
    assert {"val/loss", "val/acc"} <= set(metrics)
    assert {f"train/{name}" for name in of_energy | of_generator} == {
        key for key in metrics if key.startswith("train/")
    }


def test_training_with_batch_norm_in_the_generator(network: FC, batch: Points) -> None:
    method = make(network, q=generator(batch_norm=True))
    fit(method, batch, steps=3)
    counts = [m.num_batches_tracked for m in method.modules() if isinstance(m, nn.BatchNorm1d)]
    assert counts and all(count == 3 for count in counts), "only draws count, not the estimates of entropy"


# --------------------------------------------------------------------------------------------------------- the rest


def test_samples_are_the_generators_and_come_from_their_random_numbers_alone(network: FC) -> None:
    method = make(network, q=generator(batch_norm=True))
    assert method.can_sample
    method.train()
    random = torch.random.get_rng_state()
    first, second = (method.sample(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (6, 3)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(m.training for m in method.modules())


def test_state_is_saved_and_loaded(network: FC, batch: Points) -> None:
    method = make(network, q=generator(batch_norm=True))
    fit(method, batch, steps=2)
    again = make(FC([3], 4, hidden_dims=[16, 16]), q=generator(batch_norm=True))
    again.load_state_dict(method.state_dict(), strict=True)
    one, other = (m.sample(5, torch.Generator().manual_seed(0)) for m in (method, again))
    assert torch.equal(one, other)
    sampler, loaded = method.sampler, again.sampler
    assert isinstance(sampler, ImportanceSampling) and isinstance(loaded, ImportanceSampling)
    assert torch.equal(sampler.log_scale, loaded.log_scale)


@pytest.mark.parametrize("key", ["optimizer", "generator_optimizer"])
def test_training_needs_both_players_optimizers(key: str, network: FC) -> None:
    with pytest.raises(ConfigError, match=rf"fixed\.model_config\.{key}: training needs an optimizer"):
        make(network, **{key: None}).configure_optimizers()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pg_control": -0.1}, "pg_control"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"ebm_iters": 2, "generator_iters": 2}, "one of ebm_iters and generator_iters must be 1"),
        ({"ebm_iters": 0}, "ebm_iters"),
        ({"entropy_estimator": "exact"}, "entropy_estimator must be 'importance' or 'hmc', got 'exact'"),
        ({"posterior_samples": 0}, "num_samples"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"decay_from": 1.0}, "decay_from"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, network: FC) -> None:
    with pytest.raises(ValueError, match=message):
        make(network, **arguments)
