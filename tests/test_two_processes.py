"""Every model configuration trains in two processes: one model in the end, and chains of each process's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.conftest import MODELS, compose_points, quick_overrides
from tests.processes import in_two_processes
from uncertainty_est.building import build_data, build_method
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.training import fit_posthoc, train

Data = Callable[[str], Path]

STEPS = 2
TWO_STEPS = (
    "logger=none",
    "fixed.test_ood_datasets=[]",
    "fixed.trainer_config.max_epochs=1",
    f"fixed.trainer_config.limit_train_batches={STEPS}",
    "fixed.trainer_config.limit_val_batches=1",
)


def train_each(rank: int, points: list[dict[str, Any]], out: Path) -> None:
    for fixed in points:
        try:
            torch.save(trained(fixed, out), out / f"{fixed['model']}-{rank}.pt")
        except Exception as error:
            raise RuntimeError(f"{fixed['model']}, rank {rank}") from error


def trained(fixed: dict[str, Any], out: Path) -> dict[str, Any]:
    """What one process has after training: steps, state, which of it is its own, and scores of some inputs."""
    pl.seed_everything(fixed["seed"], workers=True, verbose=False)
    data, method = build_data(fixed), build_method(fixed)
    data.prepare_data()
    trainer, method, _ = train(fixed, method, data, out / fixed["model"])
    fit_posthoc(trainer, method, data)
    x, _ = next(iter(data.id_test_loader()))
    buffers = [name for name, module in method.named_modules() if isinstance(module, ReplayBuffer)]
    return {
        "world": trainer.world_size,
        "steps": trainer.global_step,
        "state": method.state_dict(),
        "chains": [f"{name}.samples" for name in buffers],
        "scores": method.predict(x).scores,
    }


@pytest.fixture(scope="module")
def ranks(small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("ranks")
    points = []
    for model in MODELS:
        overrides = quick_overrides(model, small_data(model.split("_")[0]), out, trainer="ddp_cpu")
        points += compose_points(*overrides, *TWO_STEPS)
    assert in_two_processes(train_each, out, points, out) == [0, 0]
    return {m: [torch.load(out / f"{m}-{rank}.pt", weights_only=True) for rank in (0, 1)] for m in MODELS}


@pytest.mark.parametrize("configuration", MODELS)
def test_two_processes_train_one_model(configuration: str, ranks: dict[str, list[dict[str, Any]]]) -> None:
    one, two = ranks[configuration]
    assert one["world"] == two["world"] == 2
    assert one["steps"] == two["steps"] >= STEPS
    for name, value in one["state"].items():
        if name in one["chains"]:
            assert not torch.equal(value, two["state"][name]), f"{name}: the chains of both are the same"
        else:
            assert torch.equal(value, two["state"][name]), name
        assert value.isfinite().all(), name
    for scores in (one["scores"], two["scores"]):
        assert all(value.isfinite().all() for value in scores.values())
    if not one["chains"]:
        assert all(torch.equal(value, two["scores"][name]) for name, value in one["scores"].items())
