"""What the buffer keeps, where it keeps it, and what it costs."""

from __future__ import annotations

import io

import pytest
import torch

from uncertainty_est.errors import ConfigError
from uncertainty_est.samplers.random import rank_generator
from uncertainty_est.samplers.replay_buffer import ReplayBuffer


def test_memory_grows_with_the_size_alone() -> None:
    assert [len(ReplayBuffer([2], size=100, num_classes=c)) for c in (1, 3, 10)] == [100, 99, 100]
    assert ReplayBuffer([3, 4, 4], size=10).samples.shape == (10, 3, 4, 4)


def test_it_begins_uniformly_in_the_box() -> None:
    torch.manual_seed(0)
    samples = ReplayBuffer([5], size=4000, low=-3.0, high=1.0).samples
    assert float(samples.min()) >= -3
    assert float(samples.max()) < 1
    assert float(samples.mean()) == pytest.approx(-1.0, abs=0.03)
    assert float(samples.var()) == pytest.approx(16 / 12, abs=0.03)


def test_slots_are_different_and_only_they_are_written() -> None:
    buffer = ReplayBuffer([2], size=50, reinit_freq=0.0)
    before = buffer.samples.clone()
    x, slots = buffer.draw(20)
    assert len(slots.unique()) == 20
    assert torch.equal(x, before[slots]), "nothing begins anew with probability 0"
    buffer.write(slots, x + 1)
    changed = (buffer.samples != before).any(1).nonzero().squeeze(1)
    assert torch.equal(changed, slots.sort().values)
    assert torch.equal(buffer.samples[slots], x + 1)
    assert len(buffer.draw(50).slots.unique()) == 50


def test_reinitialisation_has_its_probability() -> None:
    torch.manual_seed(0)
    buffer = ReplayBuffer([1], size=20_000, reinit_freq=0.05)
    buffer.samples.fill_(7.0)
    share = float((buffer.draw(20_000).x != 7).float().mean())
    assert share == pytest.approx(0.05, abs=0.006)
    always = ReplayBuffer([1], size=1000, reinit_freq=1.0)
    always.samples.fill_(7.0)
    assert bool((always.draw(1000).x.abs() <= 1).all())


def test_slots_of_a_class_lie_in_its_block() -> None:
    torch.manual_seed(0)
    buffer = ReplayBuffer([2], size=30, num_classes=3)
    y = torch.randint(3, (15,))
    slots = buffer.draw(15, y).slots
    assert torch.equal(slots // 10, y)
    assert torch.equal(buffer.classes(slots), y)
    assert len(slots.unique()) == 15, "no class is asked for more than ten times"
    often = buffer.draw(25, torch.zeros(25, dtype=torch.long)).slots
    assert set(often.tolist()) == set(range(10))


def test_every_slot_of_a_block_is_equally_likely() -> None:
    torch.manual_seed(0)
    buffer = ReplayBuffer([1], size=12, num_classes=3)
    for y in (None, torch.tensor([1, 1, 2])):
        counts = sum(torch.bincount(buffer.draw(3, y).slots, minlength=12) for _ in range(4000))
        assert isinstance(counts, torch.Tensor)
        expected = torch.full((12,), 1000.0) if y is None else torch.tensor([0.0, 2000.0, 1000.0]).repeat_interleave(4)
        torch.testing.assert_close(counts.float(), expected, atol=150, rtol=0)


def test_it_is_saved_and_loaded() -> None:
    buffer = ReplayBuffer([2], size=10)
    buffer.write(torch.tensor([3]), torch.tensor([[5.0, 6.0]]))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    again = ReplayBuffer([2], size=10)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(again.samples, buffer.samples)
    assert again.samples[3].tolist() == [5.0, 6.0]
    assert not list(buffer.parameters())


def test_a_batch_that_does_not_fit_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.buffer\.size: a batch of 11 does not fit .* of 10"):
        ReplayBuffer([2], size=10).draw(11)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"size": 2, "num_classes": 3}, "size"),
        ({"num_classes": 0}, "num_classes"),
        ({"reinit_freq": 1.1}, "reinit_freq"),
        ({"low": 1.0, "high": 1.0}, "low"),
        ({"high": float("inf")}, "low"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ReplayBuffer([2], **wrong)  # type: ignore[arg-type]


def test_every_rank_draws_numbers_of_its_own() -> None:
    torch.manual_seed(3)
    draws = [torch.randn(4, generator=rank_generator("cpu", rank)) for rank in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    torch.manual_seed(4)
    assert not torch.equal(draws[1], torch.randn(4, generator=rank_generator("cpu", 0))), "seed + 1 is another run"
