"""Every trainer and logger configuration composes; bf16 and the optional logger behave."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_utilities.core import rank_zero as utilities_rank_zero
from pytorch_lightning.utilities import rank_zero

from tests.conftest import CONFIGS, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.config import build
from uncertainty_est.errors import ConfigError
from uncertainty_est.launch import run_points
from uncertainty_est.training import check_trainer

TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))
LOGGERS = sorted(path.stem for path in (CONFIGS / "logger").glob("*.yaml"))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("logger", LOGGERS)
def test_every_trainer_and_logger_composes(trainer: str, logger: str) -> None:
    (fixed,) = compose_points(f"trainer={trainer}", f"logger={logger}")
    assert fixed["trainer_config"]["max_epochs"] == 30, "the data set's limit survives the choice of a trainer"
    assert (fixed["logger"] is None) == (logger == "none")


@pytest.mark.parametrize("trainer", ["auto", "cpu", "bf16", "ddp_cpu"])
def test_trainers_that_a_cpu_can_run_are_accepted(trainer: str) -> None:
    (fixed,) = compose_points(f"trainer={trainer}")
    check_trainer(fixed["trainer_config"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_trainer_without_a_gpu_is_a_config_error(trainer: str) -> None:
    (fixed,) = compose_points(f"trainer={trainer}")
    with pytest.raises(ConfigError, match="pytorch_lightning.Trainer: .*gpu"):
        check_trainer(fixed["trainer_config"])


def test_several_nodes_need_srun_and_then_no_requeueing_by_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = ("fixed.trainer_config.accelerator=cpu", "fixed.trainer_config.devices=2")
    (fixed,) = compose_points("trainer=ddp_multinode", *cpu)
    with pytest.raises(
        ConfigError, match=r"started by srun \(see docs/cluster.md\); on one machine choose trainer=ddp"
    ):
        check_trainer(fixed["trainer_config"])
    started = {
        "JOB_ID": 7,
        "JOB_NAME": "some",
        "NTASKS": 4,
        "NTASKS_PER_NODE": 2,
        "NNODES": 2,
        "NODEID": 1,
        "PROCID": 3,
    }
    for key, value in ({"LOCALID": 1} | started).items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    for of_lightning in (rank_zero.rank_zero_only, utilities_rank_zero.rank_zero_only):
        # Building a trainer sets it, and loggers of later tests would write nothing.
        monkeypatch.setattr(of_lightning, "rank", getattr(of_lightning, "rank", 0), raising=False)
    trainer = build(fixed["trainer_config"], logger=False, enable_checkpointing=False)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.num_nodes) == (4, 3, 1, 2)


def test_bf16_trains_and_keeps_fitted_state_and_scores_in_full_precision(
    small_data: Callable[[str], Path], tmp_path: Path
) -> None:
    overrides = quick_overrides("img_ddu", small_data("img"), tmp_path, trainer="bf16")
    more = ("fixed.trainer_config.accelerator=cpu", "fixed.trainer_config.max_epochs=4")
    (results,) = run_points(compose_points(*overrides, *more))
    state = checkpoints.read_weights(Path(results["run_dir"]))
    assert state["density.scale_tril"].dtype == torch.float64
    assert state["network.head.weight"].dtype == torch.float32
    assert results["classification"]["Accuracy"] > 80
    json.dumps(results, allow_nan=False)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="says what happens without wandb")
def test_an_absent_optional_logger_names_its_package() -> None:
    (fixed,) = compose_points("logger=wandb")
    with pytest.raises(ConfigError, match="wandb"):
        from functools import partial

        logger = build(fixed["logger"])
        assert isinstance(logger, partial)
        build({key: value for key, value in fixed["logger"].items() if key != "_partial_"}, save_dir=".")


def test_a_data_set_limits_steps_and_validation() -> None:
    (fixed,) = compose_points("dataset=sensorless", "model=fc_ce_baseline", "trainer=cpu")
    limits = fixed["trainer_config"]
    assert (limits["max_steps"], limits["check_val_every_n_epoch"]) == (10_000, 10)
