"""ActNorm: what the first batch sets, when it does, that it is remembered, and two processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.processes import in_two_processes
from uncertainty_est.densities.actnorm import ActNorm
from uncertainty_est.densities.coupling_nets import ConvNet, Normalised


def images(n: int = 16, seed: int = 0) -> Tensor:
    """Channels of unlike means and spreads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 4, 5, generator=generator)
    return x * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1) + torch.tensor([5.0, 0.0, -100.0]).view(3, 1, 1)


def assert_standardised(y: Tensor) -> None:
    channels = y.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.var(1, correction=0), torch.ones(len(channels)).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(16, 3, 4, 5), (320, 3)])
def test_the_first_training_batch_is_standardised(shape: tuple[int, ...]) -> None:
    x = images().transpose(0, 1).reshape(3, -1).T if len(shape) == 2 else images()
    norm = ActNorm(3)
    y, log_det = norm(x)
    assert y.shape == shape
    assert_standardised(y)
    assert log_det.item() == pytest.approx(norm.log_scale.sum().item() * x[0, 0].numel(), rel=1e-6)


def test_later_batches_set_nothing() -> None:
    norm = ActNorm(3)
    norm(images())
    before = [parameter.clone() for parameter in norm.parameters()]
    y, _ = norm(10 * images(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.parameters(), strict=True))
    assert y.std() > 5


def test_neither_scoring_nor_sampling_sets_anything() -> None:
    norm = ActNorm(3)
    norm.inverse(images())
    norm.eval()
    y, log_det = norm(images())
    assert torch.equal(y, images())
    assert log_det == 0
    assert not norm.initialised
    norm.train()
    assert_standardised(norm(images())[0])


def test_a_constant_channel_keeps_its_scale() -> None:
    x = images()
    x[:, 1] = 0.1
    norm = ActNorm(3)
    y, _ = norm(x)
    assert norm.log_scale[1] == 0
    assert y[:, 1].abs().max() < 1e-6


def test_setting_leaves_gradients_alone() -> None:
    norm = ActNorm(3)
    y, log_det = norm(images())
    (y.square().sum() + log_det).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())


def test_a_loaded_state_is_not_set_again() -> None:
    first, second = ActNorm(3), ActNorm(3)
    first(images())
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(images(seed=1))[0], first(images(seed=1))[0])


def test_loading_an_unset_state_makes_the_next_batch_the_first() -> None:
    norm = ActNorm(3)
    unset = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(images())
    norm.load_state_dict(unset)
    assert_standardised(norm(100 * images(seed=1))[0])


def test_a_normalised_convolution_is_standardised_by_its_first_batch() -> None:
    layer = Normalised(3, 7, 3)
    assert_standardised(layer(images()))
    layer.eval()
    torch.testing.assert_close(layer(images(seed=1)), layer.norm(layer.conv(images(seed=1)))[0], atol=1e-4, rtol=1e-4)


def _initialise_on_rank(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    net = ConvNet(3, 4, 6)
    net(images()[:4] if rank == 0 else images()[4:])
    torch.save(net.state_dict(), folder / f"{rank}.pt")


def test_two_processes_take_the_moments_of_their_whole_batch(tmp_path: Path) -> None:
    assert in_two_processes(_initialise_on_rank, tmp_path, tmp_path) == [0, 0]
    torch.manual_seed(0)
    whole = ConvNet(3, 4, 6)
    whole(images())
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in whole.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, atol=1e-5, rtol=1e-5)
