"""Inputs in levels: encoding, layout, and a table of probabilities that is learned."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.ebm.discrete_mcmc import DiscreteMCMC
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.wide_resnet import WideResNet
from uncertainty_est.samplers.gibbs import GibbsWithGradients
from uncertainty_est.samplers.replay_buffer import ReplayBuffer


def make(data_shape: list[int], v: int = 4, num_classes: int = 1, steps: int = 2, **arguments: object) -> DiscreteMCMC:
    torch.manual_seed(0)
    if len(data_shape) == 3:
        network = partial(WideResNet, data_shape=None, num_classes=num_classes, depth=10, widen_factor=1, norm="none")
    else:
        network = partial(FC, data_shape=None, num_classes=num_classes, hidden_dims=[32, 32], activation="silu")
    buffer = ReplayBuffer(data_shape, size=600, num_classes=num_classes, low=-1.0, high=3.0)
    return DiscreteMCMC(network, data_shape, v, GibbsWithGradients(steps), buffer, **arguments)  # type: ignore[arg-type]


def test_bins_are_numbered_from_low_to_high_and_outer_ones_take_what_is_beyond() -> None:
    method = make([6])
    x = torch.tensor([[-1.0, -0.01, 0.0, 2.99, 50.0, -50.0]])
    assert method.encode(x).argmax(-1).tolist() == [[0, 0, 1, 3, 3, 0]]
    assert method.encode(torch.tensor([[float("nan"), torch.inf, -torch.inf, 1e30, 0, 0]])).sum(-1).eq(1).all()


@pytest.mark.parametrize("shape", [[5], [2, 4, 4]])
def test_middles_of_bins_are_their_own_code(shape: list[int]) -> None:
    method = make(shape)
    sites = F.one_hot(torch.randint(4, (7, 5 if len(shape) == 1 else 32)), 4).float()
    middles = method.decode(sites)
    assert middles.shape == (7, *shape)
    assert torch.equal(method.encode(middles), sites)
    assert set(middles.unique().tolist()) <= {-0.5, 0.5, 1.5, 2.5}


def test_an_images_levels_become_channels() -> None:
    method = make([2, 4, 4])
    x = method.buffer.fresh(3)
    sites = method.encode(x)
    seen: list[Tensor] = []
    method.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.logits(x)
    (image,) = seen
    assert image.shape == (3, 8, 4, 4)
    levels = ((x + 1) / 4 * 4).long()
    for channel in range(2):
        for level in range(4):
            assert torch.equal(image[:, 4 * channel + level], (levels[:, channel] == level).float())
    assert torch.equal(image.sum((1, 2, 3)), sites.sum((1, 2)))


def test_scores_do_not_tell_inputs_of_one_bin_apart() -> None:
    method = make([3])
    x = torch.tensor([[0.1, 1.2, 2.9], [0.8, 1.9, 99.0]])
    scores = method.predict(x).scores["p(x)"]
    assert scores[0] == scores[1]


def test_chains_stay_in_the_middles_and_go_back_to_the_buffer() -> None:
    method = make([3], num_classes=3, pyxce=1.0, class_cond_p_x_sample=True, p_control=0.1)
    parts = method.loss({"id": (torch.randn(20, 3), torch.randint(3, (20,)))})
    assert list(parts) == ["density", "control", "ce"]
    assert "sampler/acceptance" in method._take_notes()
    middles = torch.tensor([-0.5, 0.5, 1.5, 2.5])
    written = torch.isin(method.buffer.samples, middles).all(1)
    assert int(written.sum()) == 20
    drawn = method.sample(9, torch.Generator().manual_seed(0))
    assert torch.isin(drawn, middles).all()
    assert all(p.grad is None for p in method.parameters())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_categories must be at least 2"):
        make([3], v=1)
    with pytest.raises(ValueError, match="network.num_classes is 1"):
        make([3], pyxce=1.0)


def test_a_table_of_probabilities_is_learned() -> None:
    """Two features in four bins each, dependent: the learned probabilities of all 16 pairs are those of the data."""
    method = make([2], steps=4)
    method.buffer.reinit_freq = 0.0  # four steps are too few to forget a beginning
    generator = torch.Generator().manual_seed(0)
    law = torch.randn(16, generator=generator).mul(1.2).softmax(0)
    middles = torch.tensor([-0.5, 0.5, 1.5, 2.5])
    pairs = torch.cartesian_prod(middles, middles)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=250)
    for _ in range(250):
        x = pairs[torch.multinomial(law, 512, replacement=True, generator=generator)]
        loss = method.loss({"id": (x, torch.zeros(512, dtype=torch.long))})["density"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learned = method.predict(pairs).scores["p(x)"].softmax(0)
    assert float((learned - law).abs().sum() / 2) < 0.04
