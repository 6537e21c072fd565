"""Objectives under several processes: random numbers of each process's own, weights and queues of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.processes import fit_in_two_processes
from uncertainty_est.data.loader import JointLoader, TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.densities.coupling import CouplingFlows
from uncertainty_est.densities.noise import DiagonalNormal
from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ebm.conditional_nce import ConditionalNCE
from uncertainty_est.models.ebm.flow_contrastive import FlowContrastive
from uncertainty_est.models.ebm.hdge import HDGE
from uncertainty_est.models.ebm.nce import NCE
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.models.ebm.ssm import SSM
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.fc import FC

SGD = partial(torch.optim.SGD, lr=0.05)
Make = Callable[[Network], ObjectiveModel]
METHODS: dict[str, Make] = {
    "ssm": partial(SSM, input_noise=0.1, optimizer=SGD),
    "nce": partial(NCE, noise=DiagonalNormal([3], mean=0.0, std=2.0), optimizer=SGD),
    "conditional_nce": partial(ConditionalNCE, optimizer=SGD),
    "hdge": partial(HDGE, px_weight=1.0, queue_size=60, input_noise=1.0, optimizer=SGD),
    "flow_contrastive": partial(
        FlowContrastive,
        flow=partial(CouplingFlows, num_layers=2, hidden_dims=[8]),
        data_shape=[3],
        optimizer=SGD,
        flow_optimizer=SGD,
    ),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> ObjectiveModel:
    torch.manual_seed(0)
    return METHODS[request.param](FC(data_shape=[3], num_classes=4, hidden_dims=[16], activation="silu"))


def test_validation_is_the_objective_and_leaves_no_gradient(
    method: ObjectiveModel, batch: tuple[Tensor, Tensor]
) -> None:
    with torch.inference_mode(), scoring_mode(method):
        data = {"id": (batch[0].clone(), batch[1].clone())}
        method.generator = torch.Generator().manual_seed(1)
        parts, probs = method.validate_batch(data)
    method.generator = torch.Generator().manual_seed(1)
    expected = method.loss({"id": batch})
    assert list(parts) == list(expected)
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name].detach())
    assert probs is not None
    assert probs.shape == (40, 4)
    assert all(parameter.grad is None for parameter in method.parameters())


def test_random_numbers_are_the_methods_own(method: ObjectiveModel, batch: tuple[Tensor, Tensor]) -> None:
    method.generator = torch.Generator().manual_seed(1)
    before = torch.random.get_rng_state()
    method.loss({"id": batch})
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_parameter_has_a_gradient(method: ObjectiveModel, batch: tuple[Tensor, Tensor]) -> None:
    """DDP waits for all of them."""
    torch.stack(list(method.loss({"id": batch}).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


class Compare(pl.Callback):
    """Raises, in the process that finds it, what should not be: a test cannot look into others."""

    def __init__(self, start: Tensor) -> None:
        self.start = start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.world_size == 2
        own = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        assert not torch.equal(own, self.start), "nothing was trained"
        both = pl_module.all_gather(own)
        assert torch.equal(both[0], both[1]), "the processes have different weights"
        assert isinstance(pl_module, ObjectiveModel)
        numbers = pl_module.all_gather(pl_module.randn((5,)))
        assert not torch.equal(numbers[0], numbers[1]), "both processes drew the same numbers"
        if isinstance(pl_module, HDGE):
            held = pl_module.all_gather(pl_module.queue.logits)
            assert torch.equal(held[0], held[1]), "the processes have different queues"
            assert pl_module.queue.pushed == 2 * 10 * trainer.global_step
            first, second = held[0][:, :20].chunk(2, dim=1)
            assert not torch.equal(first, second), "both halves of a push are one process's"


@pytest.mark.parametrize("name", ["hdge", "flow_contrastive"])
def test_two_processes_stay_together_and_draw_apart(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = METHODS[name](FC(data_shape=[3], num_classes=4, hidden_dims=[16], activation="silu"))
    split = Split(torch.randn(20, 3), torch.randint(4, (20,)), torch.arange(20), "all")
    loader = JointLoader(TensorLoader(split, batch_size=10))
    start = torch.cat([p.detach().flatten().clone() for p in method.parameters()])
    assert fit_in_two_processes(method, [loader, loader], tmp_path, 2, Compare(start)) == [0, 0]
