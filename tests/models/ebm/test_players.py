"""Several optimisers under several processes: averaged gradients, samples of each process's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tests.models.ebm.test_vera import Repeat, sgd
from tests.processes import fit_in_two_processes
from uncertainty_est.models.ebm.vera import VERA
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator
from uncertainty_est.samplers.vera import Draw, LatentGenerator

PLAYERS = ("network", "generator", "sampler")


def vector(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Remembers(LatentGenerator):
    """Keeps the latent vectors of its last draw."""

    def draw(self, n: int, generator: torch.Generator | None = None) -> Draw:
        drawn = super().draw(n, generator)
        self.last = drawn.h
        return drawn


class Compare(pl.Callback):
    """Raises, in the process that finds it, what should not be: a test cannot look into others."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        self.start = start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.world_size == 2
        for name in PLAYERS:
            own = vector(pl_module.get_submodule(name))
            assert not torch.equal(own, self.start[name]), f"{name} was not trained"
            both = pl_module.all_gather(own)
            assert torch.equal(both[0], both[1]), f"{name} differs between processes"
        generator = pl_module.generator
        assert isinstance(generator, Remembers)
        drawn = pl_module.all_gather(generator.last)
        assert not torch.equal(drawn[0], drawn[1]), "both processes drew the same samples"
        assert trainer.global_step == 3


def test_two_processes_stay_together_and_draw_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = Remembers(partial(FCGenerator, hidden_dims=[8], batch_norm=True), [3], latent_dim=2)
    method = VERA(
        FC([3], 4, hidden_dims=[8]),
        generator,
        optimizer=sgd(0.1),
        generator_optimizer=sgd(0.1),
        posterior_optimizer=sgd(0.1),
    )
    start = {name: vector(method.get_submodule(name)) for name in PLAYERS}
    batch = torch.randn(16, 3), torch.randint(4, (16,))
    loaders = [Repeat(batch, 3), Repeat(batch, 1)]
    assert fit_in_two_processes(method, loaders, tmp_path, 1, Compare(start)) == [0, 0]
