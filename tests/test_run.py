"""One run: reproducible, never written over, rebuilt from its folder, the same with one process and with two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import Trained, compose_points, quick_overrides
from tests.processes import Command
from uncertainty_est import checkpoints
from uncertainty_est.launch import run_points
from uncertainty_est.run import run

Get = Callable[[str], Trained]
Data = Callable[[str], Path]


def start(model: str, small_data: Data, out: Path, *more: str) -> list[dict]:  # type: ignore[type-arg]
    overrides = quick_overrides(model, small_data(model.split("_")[0]), out)
    return run_points(compose_points(*overrides, *more))


def weights(run_dir: str | Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_weights(Path(run_dir))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("model", ["img_ddu", "fc_ddu"])
def test_the_seed_decides_the_weights(model: str, small_data: Data, tmp_path: Path) -> None:
    quick = "fixed.trainer_config.max_epochs=1"
    (first,) = start(model, small_data, tmp_path, quick, "fixed.seed=5")
    (second,) = start(model, small_data, tmp_path, quick, "fixed.seed=5")
    (other,) = start(model, small_data, tmp_path, quick, "fixed.seed=6")
    assert first["run_dir"] != second["run_dir"], "a run folder is never written over"
    assert equal(weights(first["run_dir"]), weights(second["run_dir"]))
    assert not equal(weights(first["run_dir"]), weights(other["run_dir"]))
    splits = [np.load(Path(r["run_dir"]) / "splits.npz") for r in (first, other)]
    assert all(np.array_equal(splits[0][name], splits[1][name]) for name in splits[0].files)


def test_a_grid_runs_its_points_one_after_another(small_data: Data, tmp_path: Path) -> None:
    quick = "fixed.trainer_config.max_epochs=1"
    results = start("fc_ce_baseline", small_data, tmp_path, quick, "grid=seed", "grid.seed.options=[3,4]")
    assert [Path(r["run_dir"]).name for r in results] == [f"fc_ce_baseline-gaussian2d-seed{s}" for s in (3, 4)]


def test_the_saved_configuration_alone_rebuilds_the_run(trained: Get, tmp_path: Path) -> None:
    """The file is plain YAML without interpolations, and `run` takes it as it is."""
    text = (trained("fc_ce_baseline").run.path / "config.yaml").read_text()
    assert "${" not in text
    fixed = yaml.safe_load(text)
    fixed["output_folder"] = str(tmp_path)
    again = run(**fixed)
    assert equal(weights(again["run_dir"]), weights(trained("fc_ce_baseline").run.path))


def test_a_finished_classifier_becomes_a_ddu_without_training(trained: Get, small_data: Data, tmp_path: Path) -> None:
    start_from = trained("fc_ce_baseline").run.path
    more = (f"fixed.init_from={start_from}", "fixed.trainer_config.max_epochs=0")
    (result,) = start("fc_ddu", small_data, tmp_path, *more)
    before, after = weights(start_from), weights(result["run_dir"])
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert after["density.fitted"]
    saved = yaml.safe_load((Path(result["run_dir"]) / "config.yaml").read_text())["model_config"]["network"]
    assert saved == trained("fc_ce_baseline").fixed["model_config"]["network"], "the network is the run's"
    accuracy = trained("fc_ce_baseline").results["classification"]["Accuracy"]
    assert result["classification"]["Accuracy"] == accuracy


def test_finished_classifiers_become_an_ensemble(small_data: Data, tmp_path: Path) -> None:
    quick = "fixed.trainer_config.max_epochs=1"
    singles = start("fc_ce_baseline", small_data, tmp_path, quick, "grid=seed", "grid.seed.options=[1,2]")
    folders = ",".join(result["run_dir"] for result in singles)
    more = (
        f"fixed.init_from=[{folders}]",
        "fixed.model_config.num_members=2",
        "fixed.trainer_config.max_epochs=0",
    )
    (result,) = start("fc_deep_ensemble", small_data, tmp_path, *more)
    state = weights(result["run_dir"])
    for k, single in enumerate(singles):
        for key, value in weights(single["run_dir"]).items():
            assert torch.equal(state[key.replace("network.", f"members.{k}.")], value)


def test_the_best_weights_are_kept(small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a validation loss that is least in the second epoch, the run's weights are those of that epoch."""
    from uncertainty_est.models.ce_baseline import CEBaseline

    seen: list[dict[str, torch.Tensor]] = []

    def on_validation_epoch_end(self: CEBaseline) -> None:
        seen.append({key: value.clone() for key, value in self.state_dict().items()})

    def validate_batch(self: CEBaseline, batch: dict) -> tuple:  # type: ignore[type-arg]
        return {"ce": torch.tensor(float(self.current_epoch != 1))}, None

    monkeypatch.setattr(CEBaseline, "on_validation_epoch_end", on_validation_epoch_end)
    monkeypatch.setattr(CEBaseline, "validate_batch", validate_batch)
    (result,) = start("fc_ce_baseline", small_data, tmp_path, "fixed.trainer_config.max_epochs=4")
    assert len(seen) == 4
    assert equal(weights(result["run_dir"]), seen[1])


@pytest.mark.parametrize(
    "when",
    [
        ["+fixed.trainer_config.val_check_interval=3"],
        ["+fixed.trainer_config.val_check_interval=9", "fixed.trainer_config.check_val_every_n_epoch=null"],
    ],
)
def test_what_training_notes_is_there_for_validation_in_the_midst_of_an_epoch(
    when: list[str], small_data: Data, tmp_path: Path
) -> None:
    by_loss = ["fixed.checkpoint_config.monitor=train/loss", "fixed.checkpoint_config.mode=min"]
    rarely = ["fixed.trainer_config.log_every_n_steps=10", "fixed.trainer_config.max_epochs=2"]
    (result,) = start("fc_ce_baseline", small_data, tmp_path, *rarely, *by_loss, *when)
    assert list((Path(result["run_dir"]) / "checkpoints").glob("*.ckpt"))


def test_averaged_weights_are_what_is_kept(small_data: Data, tmp_path: Path) -> None:
    """An exponential moving average of the weights after each step, from the first step on."""
    last = ("fixed.checkpoint_config=null", "fixed.earlystop_config=null")

    def after(steps: int, *more: str) -> dict[str, torch.Tensor]:
        (result,) = start(
            "fc_ce_baseline", small_data, tmp_path, *last, f"fixed.trainer_config.max_steps={steps}", *more
        )
        return weights(result["run_dir"])

    steps = [after(n) for n in (1, 2, 3)]
    averaged = after(3, "averaging=ema", "fixed.averaging_config.decay=0.75")
    for key, value in averaged.items():
        expected = 0.75 * (0.75 * steps[0][key] + 0.25 * steps[1][key]) + 0.25 * steps[2][key]
        torch.testing.assert_close(value, expected, msg=lambda m, k=key: f"{k}: {m}")
    assert not equal(averaged, steps[2])


def test_val_ood_is_logged_and_selects(small_data: Data, tmp_path: Path) -> None:
    (result,) = start(
        "fc_ce_baseline",
        small_data,
        tmp_path,
        "fixed.val_ood_datasets=[anomalous_gaussian2d]",
        "fixed.checkpoint_config.monitor=val/ood",
        "fixed.trainer_config.max_epochs=2",
    )
    log = (Path(result["run_dir"]) / "logs" / "metrics.csv").read_text()
    assert "val/ood" in log.splitlines()[0]


@pytest.mark.slow
def test_two_processes_train_and_fit_the_density_that_one_fits(small_data: Data, tmp_path: Path) -> None:
    """To the same weights: means, covariances and results must not depend on the number of processes."""
    overrides = quick_overrides("fc_ddu", small_data("fc"), tmp_path / "two", trainer="ddp_cpu")
    done = Command(["train_local.py", *overrides, "fixed.trainer_config.max_epochs=4"]).wait()
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "two").iterdir()
    results, two = json.loads((folder / "results.json").read_text()), weights(folder)
    assert results["classification"]["Accuracy"] > 95
    # A run of the plain classifier is what init_from takes: the DDU's own fitted state is fitted anew.
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["state_dict"] = {k: v for k, v in state["state_dict"].items() if k.startswith("network.")}
    torch.save(state, folder / "checkpoint.pt")
    more = (f"fixed.init_from={folder}", "fixed.trainer_config.max_epochs=0")
    (again,) = start("fc_ddu", small_data, tmp_path / "one", *more)
    for key, value in weights(again["run_dir"]).items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    assert results["classification"] == pytest.approx(again["classification"], abs=1e-4)
