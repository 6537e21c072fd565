"""A loss that diverges: found early, told once, and dealt with as ``fixed.on_divergence`` says."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from tests.conftest import compose_points, quick_overrides
from tests.processes import in_two_processes
from uncertainty_est import checkpoints
from uncertainty_est.callbacks import FiniteLoss
from uncertainty_est.errors import ConfigError, TrainingError
from uncertainty_est.launch import run_points
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.run import run

Data = Callable[[str], Path]


@pytest.fixture
def start(small_data: Data, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs ``fc_ce_baseline`` for two epochs of ten steps, with more overrides."""

    def go(*more: str) -> dict[str, Any]:
        overrides = quick_overrides("fc_ce_baseline", small_data("fc"), tmp_path)
        (result,) = run_points(compose_points(*overrides, "fixed.trainer_config.max_epochs=2", *more))
        return result

    return go


def break_loss(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], value: float = float("nan")) -> None:
    """The loss of a training step becomes `value` times itself from the step on that `when` names."""
    original = CEBaseline.loss
    step = 0

    def loss(self: CEBaseline, batch: Any) -> dict[str, Tensor]:
        nonlocal step
        step = step + 1 if self.trainer.global_step else 1
        return {name: part * (value if when(step) else 1.0) for name, part in original(self, batch).items()}

    monkeypatch.setattr(CEBaseline, "loss", loss)


def weights(folder: str | Path) -> dict[str, Tensor]:
    return checkpoints.read_weights(Path(folder))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------------------- found


class Manual(pl.LightningModule):
    """Manual optimisation that returns losses given beforehand."""

    def __init__(self, losses: list[float | None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses = losses

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        value = self.losses[batch_idx]
        return None if value is None else torch.tensor(value)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def fit(losses: list[float | None], watch: FiniteLoss) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Manual(losses), DataLoader(torch.zeros(len(losses), 1), batch_size=1))


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2e8, -2e8])
def test_losses_of_manual_optimisation_are_watched(bad: float) -> None:
    watch = FiniteLoss(every_n_steps=4)
    with pytest.raises(TrainingError, match=r"exceeded 1e\+08, by step 8 \(epoch 0\)"):
        fit([1.0, None, 1.0, 1.0, 1.0, bad, 1.0, None, 1.0], watch)
    assert watch.finding is not None
    with pytest.raises(TrainingError, match="by step 3"):
        fit([1.0, bad, 1.0], FiniteLoss(every_n_steps=100))  # at the end of the epoch
    fit([1.0, 9e7, -9e7, None], FiniteLoss(every_n_steps=2))
    with pytest.raises(TrainingError, match=r"exceeded 1e\+01"):
        fit([11.0], FiniteLoss(limit=10.0))


def test_an_unknown_setting_is_refused_before_anything_is_made(start: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fixed\.on_divergence: must be one of stop, restart, keep, got 'go on'"):
        start("fixed.on_divergence='go on'")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- stop


def test_stop_ends_the_run_and_what_was_logged_stays(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, lambda step: step > 12)
    with pytest.raises(TrainingError, match="by step 20"):
        start("fixed.trainer_config.log_every_n_steps=5")
    (folder,) = tmp_path.iterdir()
    assert "train/loss" in (folder / "logs" / "metrics.csv").read_text()
    assert not (folder / "checkpoint.pt").exists()
    (best,) = (folder / "checkpoints").glob("best*")
    state = torch.load(best, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values()), "no checkpoint of the broken epoch"


# ----------------------------------------------------------------------------------------------------------- restart


def test_restart_trains_as_another_seed_would(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = CEBaseline.loss

    def loss(self: CEBaseline, batch: Any) -> dict[str, Tensor]:
        broken = torch.initial_seed() == 1
        return {name: part * (float("nan") if broken else 1.0) for name, part in original(self, batch).items()}

    monkeypatch.setattr(CEBaseline, "loss", loss)
    with caplog.at_level(logging.WARNING):
        result = start("fixed.on_divergence=restart")
    told = result["divergence"]
    assert told["restarts"] == 1
    assert told["seed"] != 1
    assert caplog.text.count("became NaN") == 1
    assert f"restart 1 of 3, with seed {told['seed']}" in caplog.text
    folder = Path(result["run_dir"])
    assert json.loads((folder / "results.json").read_text())["divergence"] == told
    assert (folder / "logs" / "metrics.csv").is_file()
    assert (folder / "restart1" / "logs" / "metrics.csv").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 1
    other = start(f"fixed.seed={told['seed']}")
    assert "divergence" not in other
    assert equal(weights(folder), weights(other["run_dir"]))


def test_restarts_come_to_an_end(start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match="^3 restarts did not help: the training"):
        start("fixed.on_divergence=restart", "fixed.model_config.optimizer.lr=1e30")
    assert caplog.text.count("restart ") == 3
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} >= {"logs", "restart1", "restart2", "restart3"}
    assert not (folder / "checkpoint.pt").exists()


# -------------------------------------------------------------------------------------------------------------- keep


def test_keep_scores_the_best_monitored_weights(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = start("fixed.trainer_config.max_epochs=1")
    break_loss(monkeypatch, lambda step: step > 12)
    with caplog.at_level(logging.WARNING):
        result = start("fixed.on_divergence=keep")
    assert result["divergence"]["kept"] == "the best monitored weights"
    assert "by step 20" in result["divergence"]["found"]
    assert caplog.text.count("kept are the best monitored weights") == 1
    assert equal(weights(result["run_dir"]), weights(whole["run_dir"]))
    assert result["classification"] == whole["classification"]


def test_keep_without_a_monitor_goes_back_to_the_last_look_but_one(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks after steps 10, 20, ...; losses break in step 33, so that weights of step 20 are known to be good."""
    last = ("fixed.checkpoint_config.monitor=null", "fixed.earlystop_config=null")
    whole = start(*last)
    break_loss(monkeypatch, lambda step: step > 32, value=1e12)
    result = start("fixed.on_divergence=keep", "fixed.trainer_config.max_epochs=5", *last)
    assert result["divergence"]["kept"] == "the weights of step 20"
    assert equal(weights(result["run_dir"]), weights(whole["run_dir"]))


def test_keep_before_anything_was_learned_keeps_the_first_weights(start: Any) -> None:
    result = start("fixed.on_divergence=keep", "fixed.model_config.optimizer.lr=1e30")
    assert result["divergence"]["kept"] == "the weights of step 0"
    assert all(value.isfinite().all() for value in weights(result["run_dir"]).values())
    untrained = start("fixed.trainer_config.max_epochs=0")
    assert equal(weights(result["run_dir"]), weights(untrained["run_dir"]))


# --------------------------------------------------------------------------------------------------------------- DDP


def run_where_the_second_diverges(rank: int, fixed: dict[str, Any]) -> None:
    original = CEBaseline.loss

    def loss(self: CEBaseline, batch: Any) -> dict[str, Tensor]:
        broken = self.global_rank == 1 and torch.initial_seed() == 1
        return {name: part * (float("nan") if broken else 1.0) for name, part in original(self, batch).items()}

    CEBaseline.loss = loss  # type: ignore[method-assign]  # of this process, which ends with the run
    run(**fixed)


@pytest.mark.parametrize("setting", ["restart", "keep"])
def test_all_ranks_do_the_same_when_one_diverges(setting: str, small_data: Data, tmp_path: Path) -> None:
    overrides = quick_overrides("fc_ce_baseline", small_data("fc"), tmp_path / "out", trainer="ddp_cpu")
    more = ("fixed.trainer_config.max_epochs=2", f"fixed.on_divergence={setting}")
    (fixed,) = compose_points(*overrides, *more)
    assert in_two_processes(run_where_the_second_diverges, tmp_path, fixed) == [0, 0]
    (folder,) = (tmp_path / "out").iterdir()
    results = json.loads((folder / "results.json").read_text())
    if setting == "restart":
        assert results["divergence"]["restarts"] == 1
        assert results["classification"]["Accuracy"] > 30
    else:
        assert results["divergence"]["kept"] == "the weights of step 0"
    assert all(value.isfinite().all() for value in weights(folder).values())
