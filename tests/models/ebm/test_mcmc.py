"""The losses of maximum likelihood with chains, term by term, and what sampling may and may not touch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.models.ebm.mcmc import MCMC
from uncertainty_est.networks.fc import FC
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.samplers.sgld import SGLD, Chain

Points = tuple[Tensor, Tensor]


def make(network: nn.Module, steps: int = 0, reinit_freq: float = 0.0, **arguments: object) -> MCMC:
    """A method whose chains stay where they are, unless `steps` are asked for."""
    torch.manual_seed(2)
    buffer = ReplayBuffer([3], size=80, num_classes=network.head.out_features, reinit_freq=reinit_freq)
    return MCMC(network, SGLD(steps, lr=0.1, std=0.1), buffer, **arguments)  # type: ignore[arg-type]


def gradients(method: MCMC, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(method.parameters()), retain_graph=True, materialize_grads=True))


def drawn_by(method: MCMC, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What :meth:`MCMC.negatives` returns from now on."""
    drawn: list[Tensor] = []
    original = method.negatives

    def negatives(n: int, y: Tensor | None = None) -> Tensor:
        drawn.append(original(n, y))
        return drawn[-1]

    monkeypatch.setattr(method, "negatives", negatives)
    return drawn


def test_the_density_is_the_logsumexp_of_a_classifier(network: FC, batch: Points) -> None:
    method = make(network, pyxce=1.0)
    logits = network(batch[0])
    prediction = method.predict(batch[0])
    assert next(iter(prediction.scores)) == "p(x)"
    torch.testing.assert_close(prediction.scores["p(x)"], logits.logsumexp(-1))
    assert prediction.probs is not None
    torch.testing.assert_close(prediction.probs, logits.softmax(-1))
    joint = logits  # ln p(x, y) + ln Z
    torch.testing.assert_close(prediction.probs.log(), joint - prediction.scores["p(x)"].unsqueeze(-1))


def test_the_gradient_is_the_difference_of_mean_gradients(
    network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(network, steps=3, p_control=0.0)
    drawn = drawn_by(method, monkeypatch)
    parts = method.loss({"id": batch})
    assert list(parts) == ["density"]
    expected_loss = method.log_density(drawn[0]).mean() - method.log_density(batch[0]).mean()
    torch.testing.assert_close(parts["density"], expected_loss)
    for got, fake, real in zip(
        gradients(method, parts["density"]),
        gradients(method, method.log_density(drawn[0]).mean()),
        gradients(method, method.log_density(batch[0]).mean()),
        strict=True,
    ):
        torch.testing.assert_close(got, fake - real, atol=1e-6, rtol=1e-4)
    assert not drawn[0].requires_grad, "no gradient flows through the sampler"


def test_nothing_is_learned_from_samples_that_are_the_data(
    network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(network, p_control=0.0, pxysgld=1.0)
    monkeypatch.setattr(method, "negatives", lambda n, y=None: batch[0])
    parts = method.loss({"id": batch})
    for part in parts.values():
        torch.testing.assert_close(part, torch.zeros(()), atol=1e-6, rtol=0)
    assert all(float(g.abs().max()) < 1e-6 for g in gradients(method, parts["density"] + parts["joint"]))


def test_a_constant_added_to_the_logits_changes_the_control_only(
    network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(network, pyxce=1.0, pxysgld=1.0, p_control=0.5, entropy_reg=0.1, label_smoothing=0.1)
    drawn = drawn_by(method, monkeypatch)
    before = method.loss({"id": batch})
    f, f_drawn = method.log_density(batch[0]), method.log_density(drawn[0])
    torch.testing.assert_close(before["control"], 0.5 * (f.square().mean() + f_drawn.square().mean()))
    with torch.no_grad():
        network.head.bias += 3.0
    monkeypatch.setattr(method, "negatives", lambda n, y=None: drawn[0] if y is None else drawn[1])
    after = method.loss({"id": batch})
    assert list(after) == ["density", "control", "ce", "entropy", "joint"]
    for name in set(after) - {"control"}:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        after["control"], 0.5 * ((f + 3).square().mean() + (f_drawn + 3).square().mean()), atol=1e-5, rtol=1e-5
    )


def test_weights_multiply_their_terms(network: FC, batch: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(network, pyxce=1.0, pxysgld=1.0, entropy_reg=0.2)
    monkeypatch.setattr(one, "negatives", lambda n, y=None: torch.ones(n, 3))
    other = make(network, pxsgld=2.0, pyxce=3.0, pxysgld=5.0, entropy_reg=0.2)
    monkeypatch.setattr(other, "negatives", lambda n, y=None: torch.ones(n, 3))
    plain, weighted = one.loss({"id": batch}), other.loss({"id": batch})
    for name, weight in {"density": 2, "control": 2, "ce": 3, "entropy": 3, "joint": 5}.items():
        torch.testing.assert_close(weighted[name], weight * plain[name])


def test_the_class_loss_smooths_over_the_other_classes_and_rewards_entropy(network: FC, batch: Points) -> None:
    x, y = batch
    logits = network(x)
    parts = make(network, pyxce=1.0, label_smoothing=0.3, entropy_reg=0.7).class_loss(logits, y)
    target = torch.full_like(logits, 0.3 / 3).scatter(1, y.unsqueeze(1), 0.7)
    torch.testing.assert_close(parts["ce"], -(target * logits.log_softmax(-1)).sum(-1).mean())
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(parts["entropy"], -0.7 * entropy)


# ------------------------------------------------------------------------------------------------------------- chains


class Recorder:
    """A sampler that moves nothing and keeps what it was called with."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self, log_density: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator | None = None
    ) -> Chain:
        assert not self.network.training
        self.calls.append((x, log_density(x)))
        return Chain(x + 0.25, {"moved": torch.tensor(0.25)})


def test_chains_of_a_class_climb_its_logit(network: FC, batch: Points) -> None:
    """x, y: chains of the labels of the batch on their logits; the loss compares the same logits."""
    x, y = batch
    method = make(network, pxsgld=0.0, pxysgld=1.0)
    method.sampler = sampler = Recorder(network)
    parts = method.loss({"id": batch})
    (start, value) = sampler.calls[0]
    torch.testing.assert_close(value, network(start).gather(1, y.unsqueeze(1)).squeeze(1))
    end = network(start + 0.25).gather(1, y.unsqueeze(1)).mean()
    torch.testing.assert_close(parts["joint"], end - network(x).gather(1, y.unsqueeze(1)).mean())
    blocks = method.buffer.samples.view(4, 20, 3)
    assert all(bool((blocks[c] == s + 0.25).all(1).any()) for c, s in zip(y, start, strict=True))


def test_class_conditional_chains_have_the_class_of_their_slot(network: FC, batch: Points) -> None:
    method = make(network, class_cond_p_x_sample=True, pyxce=1.0)
    method.sampler = sampler = Recorder(network)
    before = method.buffer.samples.clone()
    parts = method.loss({"id": batch})
    (start, value) = sampler.calls[0]
    y = (before.unsqueeze(0) == start.unsqueeze(1)).all(-1).float().argmax(1) // 20
    torch.testing.assert_close(value, network(start).gather(1, y.unsqueeze(1)).squeeze(1))
    assert len(y.unique()) == 4
    density = network(start + 0.25).logsumexp(-1).mean() - network(batch[0]).logsumexp(-1).mean()
    torch.testing.assert_close(parts["density"], density)


def test_unconditional_chains_climb_the_density(network: FC, batch: Points) -> None:
    method = make(network)
    method.sampler = sampler = Recorder(network)
    method.loss({"id": batch})
    torch.testing.assert_close(sampler.calls[0][1], network(sampler.calls[0][0]).logsumexp(-1))


def test_sampling_touches_the_buffers_slots_and_nothing_else(network: FC, batch: Points) -> None:
    method = make(network, steps=4, pyxce=1.0, pxysgld=1.0, class_cond_p_x_sample=True)
    method.train()
    network.blocks[0].eval()  # a mode of its own must survive as well
    modes = [m.training for m in method.modules()]
    weights = {name: p.clone() for name, p in method.named_parameters()}
    before = method.buffer.samples.clone()
    method.negatives(10)
    assert [m.training for m in method.modules()] == modes
    assert all(p.grad is None and torch.equal(p, weights[name]) for name, p in method.named_parameters())
    assert int((method.buffer.samples != before).any(1).sum()) == 10
    torch.stack(list(method.loss({"id": batch}).values())).sum().backward()
    assert all(p.grad is not None for p in method.parameters())


def test_what_is_noted_beside_the_loss(network: FC, batch: Points) -> None:
    method = make(network, steps=2)
    method.loss({"id": batch})
    notes = method._take_notes()
    assert set(notes) == {"F/data", "F/samples", "sampler/gradient_norm", "sampler/step_length"}
    torch.testing.assert_close(notes["F/data"], network(batch[0]).logsumexp(-1).mean())


def test_every_rank_has_chains_and_numbers_of_its_own(network: FC, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for rank in (0, 1):
        method = make(network)
        monkeypatch.setattr(MCMC, "global_rank", rank)
        method.on_fit_start()
        states.append((method.buffer.samples.clone(), method.negatives(5)))
    assert not torch.equal(states[0][0], states[1][0])
    assert not torch.equal(states[0][1], states[1][1])
    assert "buffer.samples" in method._ddp_params_and_buffers_to_ignore


def test_the_buffer_is_part_of_the_state(network: FC) -> None:
    method, other = make(network, steps=2), make(network)
    method.negatives(40)
    assert not torch.equal(method.buffer.samples, other.buffer.samples)
    other.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(method.buffer.samples, other.buffer.samples)


def test_draws_are_decided_by_their_generator_and_leave_the_buffer_alone(network: FC) -> None:
    method = make(network, steps=3, class_cond_p_x_sample=True)
    before = method.buffer.samples.clone()
    global_state = torch.random.get_rng_state()
    first, second = (method.sample(200, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (200, 3), "more than the buffer holds"
    assert torch.equal(first, second)
    assert torch.equal(method.buffer.samples, before)
    assert torch.equal(torch.random.get_rng_state(), global_state)


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_approximate_mass_is_the_negative_length_of_the_gradient(
    mode: type[torch.no_grad], network: FC, batch: Points
) -> None:
    method = make(network, pyxce=1.0, approximate_mass=True)
    plain = make(network, pyxce=1.0)
    x = batch[0]
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).logsumexp(-1), x)
    gradient = torch.stack([jacobian[i, i] for i in range(len(x))])
    with mode():
        scores = method.predict(x.clone()).scores
        assert list(scores) == [*plain.predict(x).scores, "Approximate mass"]
    torch.testing.assert_close(scores["Approximate mass"], -gradient.norm(dim=1))
    torch.testing.assert_close(scores["p(x)"], plain.predict(x).scores["p(x)"])


def test_a_density_without_classes_has_one_score_and_no_probabilities() -> None:
    method = make(FC([3], 1, hidden_dims=[8]))
    x = torch.randn(5, 3)
    prediction = method.predict(x)
    assert list(prediction.scores) == ["p(x)"]
    assert prediction.probs is None
    torch.testing.assert_close(prediction.scores["p(x)"], method.network(x).squeeze(-1))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pxsgld": -1.0}, "pxsgld"),
        ({"pxsgld": 0.0}, "one of the first three positive"),
        ({"p_control": -1.0}, "p_control"),
        ({"label_smoothing": 0.8}, "label_smoothing"),
        ({"input_noise": -1.0}, "input_noise"),
    ],
)
def test_wrong_arguments_are_named(network: FC, arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(network, **arguments)


@pytest.mark.parametrize("argument", ["pyxce", "pxysgld", "class_cond_p_x_sample"])
def test_classes_are_not_asked_of_a_single_logit(argument: str) -> None:
    with pytest.raises(ValueError, match="network.num_classes is 1"):
        make(FC([3], 1, hidden_dims=[8]), **{argument: True})


def test_chains_with_a_class_need_a_block_for_each(network: FC) -> None:
    with pytest.raises(ValueError, match="buffer.num_classes must be network.num_classes, 4"):
        MCMC(network, SGLD(), ReplayBuffer([3], size=80), class_cond_p_x_sample=True)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.slow
def test_a_ring_is_learned_as_a_normalised_density() -> None:
    """On a grid, e^F / Z is near the density of the data: chains at temperature 1 make it maximum likelihood.

    The loss's density term is the only one, so that nothing else could find the ring.
    """
    torch.manual_seed(0)
    network = FC([2], 1, hidden_dims=[64, 64, 64], activation="silu")
    sampler = SGLD(steps=10, lr=0.01, std=math.sqrt(0.02))
    method = MCMC(network, sampler, ReplayBuffer([2], size=2000, low=-2, high=2), p_control=0.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600)
    for _ in range(600):
        angle = 2 * math.pi * torch.rand(256)
        radius = 1 + 0.2 * torch.randn(256)
        x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        loss = method.loss({"id": (x, torch.zeros(256, dtype=torch.long))})["density"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    side = torch.linspace(-2.5, 2.5, 101)
    grid = torch.cartesian_prod(side, side)
    r = grid.norm(dim=1).clamp(min=1e-3)
    truth = torch.exp(-((r - 1) ** 2) / (2 * 0.2**2)) / r
    truth = truth.where(r > 0.02, 0.0)
    learned = method.predict(grid).scores["p(x)"].softmax(0)
    distance = float((learned - truth / truth.sum()).abs().sum() / 2)
    assert distance < 0.12
    drawn = method.sample(2000, torch.Generator().manual_seed(0))
    radii = drawn.norm(dim=1)
    assert float(radii.mean()) == pytest.approx(1.0, abs=0.06)
    assert float(radii.std()) == pytest.approx(0.2, abs=0.08)
