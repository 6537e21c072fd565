"""Every mistake a user can make ends with one sentence that names the key or file, and loses nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.conftest import CONFIGS, ROOT, Trained, compose_points, quick_overrides
from uncertainty_est.cli import one_sentence_errors
from uncertainty_est.evaluate import evaluate
from uncertainty_est.launch import run_points
from uncertainty_est.request import Request
from uncertainty_est.run import run

Get = Callable[[str], Trained]


def sentence_of(call: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error after `call`, which must end the process with code 1 and one line."""
    with pytest.raises(SystemExit) as stop, one_sentence_errors():
        call()
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=img_duu"], "model=img_duu: there is no such configuration; did you mean 'img_ddu'?"),
        (["dataset=digitz"], "dataset=digitz: there is no such configuration; did you mean 'digits'?"),
        (["netwrok=fc"], "netwrok: there is no such group or section; did you mean 'network'?"),
        (["fixed.sed=3"], "fixed.sed: there is no such key; did you mean 'seed'?"),
        (
            ["fixed.trainer_config.max_epoch=3"],
            "fixed.trainer_config.max_epoch: there is no such key; did you mean 'max_epochs'?",
        ),
        (
            ["+fixed.model_config.optimizer.lrr=1"],
            "model_config.optimizer.lrr: AdamW takes no such argument; did you mean 'lr'?",
        ),
        (
            ["fixed.test_ood_datasets=[photo_patchez]"],
            "there is no data set 'photo_patchez'",
        ),
        (
            ["grid=seed", "+grid.batchsize={type: choice, options: [1]}"],
            "grid.batchsize: there is no fixed.batchsize to sweep; did you mean 'batch_size'?",
        ),
        (["grid=seed", "grid.seed.type=choise"], "grid: "),
        (
            ["fixed.ood_dataset=uniform_noise"],
            "fixed.ood_dataset: 'uniform_noise' is also in fixed.test_ood_datasets",
        ),
        (
            ["fixed.val_ood_datasets=[constant]"],
            "fixed.val_ood_datasets: 'constant' is also in fixed.test_ood_datasets",
        ),
        (["+fixed.ood_groups.constant=[photo_patches]"], "fixed.ood_groups.constant: a group must not be called like"),
        (
            ["fixed.test_ood_datasets=[digits]"],
            "fixed.test_ood_datasets: 'digits' is the in-distribution set",
        ),
    ],
)
def test_a_wrong_name_or_key(overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in sentence_of(lambda: compose_points(*overrides), capsys)


def test_the_command_itself_prints_one_sentence_and_fails() -> None:
    result = subprocess.run(
        [sys.executable, "train_local.py", "model=img_duu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: model=img_duu: there is no such configuration; did you mean 'img_ddu'?\n"


def test_the_same_set_under_another_name_is_still_the_same_set(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["+fixed.sources.other={}", "fixed.test_ood_datasets=[constant]"]

    def start() -> None:
        (fixed,) = compose_points(*overrides)
        fixed["sources"]["other"] = fixed["sources"]["constant"]
        run(**{**fixed, "ood_dataset": "other"})

    assert "fixed.ood_dataset: 'other' is also in" in sentence_of(start, capsys)


def quick(model: str, small_data: Callable[[str], Path], out: Path, *more: str) -> Callable[[], Any]:
    overrides = quick_overrides(model, small_data(model.split("_")[0]), out)
    return lambda: run_points(compose_points(*overrides, *more))


def test_a_shape_that_the_network_cannot_take(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = quick_overrides("img_ce_baseline", small_data("img"), tmp_path)
    overrides = [*overrides, "network=lenet"]
    text = sentence_of(lambda: run_points(compose_points(*overrides)), capsys)
    assert "lenet" in text.lower()
    assert "8" in text
    assert "network=" in text
    assert not list(tmp_path.iterdir()), "nothing was computed, so nothing may be left behind"


def test_a_source_of_another_shape(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, "fixed.data_shape=[5]"), capsys)
    assert "[5]" in text or "(5,)" in text


def test_labels_out_of_range(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, "fixed.num_classes=2"), capsys)
    assert "gaussian2d" in text.lower() or "num_classes" in text
    assert "2" in text


def test_an_output_folder_that_cannot_be_written(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path / "file"), capsys)
    assert "fixed.output_folder: cannot write to" in text


def test_a_trainer_that_this_machine_cannot_run(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, "fixed.trainer_config.accelerator=tpu"), capsys)
    assert "pytorch_lightning.Trainer" in text
    assert not list(tmp_path.iterdir())


def test_a_loss_that_becomes_nan_ends_the_run_and_keeps_what_there_is(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, "fixed.model_config.optimizer.lr=1e30"), capsys)
    assert "the training loss became NaN or infinite" in text
    assert "fixed.model_config.optimizer.lr" in text
    (folder,) = tmp_path.iterdir()
    assert {"config.yaml", "splits.npz"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "checkpoint.pt").exists(), "an unusable method is not a finished run"


def test_a_grid_goes_on_after_a_failed_point(
    small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "+grid.model_config={optimizer.lr: {type: choice, options: [1e30, 1e-3]}}"
    grid = "+grid={model_config.optimizer.lr: {type: choice, options: [1e30, 0.001]}}"
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, grid), capsys)
    assert "grid: 1 of 2 points failed (numbers [1])" in text
    finished = list(tmp_path.glob("*/checkpoint.pt"))
    assert len(finished) == 1


@pytest.fixture
def two_runs(trained: Get, tmp_path: Path) -> Path:
    """A folder with a good run and a copy of it, `broken`, for the test to damage."""
    for name in ("good", "broken"):
        shutil.copytree(trained("fc_ce_baseline").run.path, tmp_path / "runs" / name)
    return tmp_path / "runs"


def truncate(run_dir: Path) -> None:
    path = run_dir / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000])


def not_a_checkpoint(run_dir: Path) -> None:
    (run_dir / "checkpoint.pt").write_text("hello")


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def damage(run_dir: Path) -> None:
        path = run_dir / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            node = config
            *parents, last = key.split("__")
            for parent in parents:
                node = node[parent]
            node[last] = value
        path.write_text(yaml.safe_dump(config))

    return damage


def reshuffle(run_dir: Path) -> None:
    with np.load(run_dir / "splits.npz") as splits:
        changed = {name: values[::-1] for name, values in splits.items()}
    np.savez(run_dir / "splits.npz", **changed)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "checkpoint.pt is truncated or no checkpoint"),
    (not_a_checkpoint, "checkpoint.pt is truncated or no checkpoint"),
    (
        edit_config(model_config___target_="uncertainty_est.models.ddu.DDU"),
        "holds a uncertainty_est.models.ce_baseline.CEBaseline, but config.yaml beside it describes a",
    ),
    (
        edit_config(model_config__network={"_target_": "os.system", "command": "true"}),
        "'os.system' may not be built",
    ),
    (edit_config(model_config___target_="uncertainty_est.networks.fc.FC"), "config.yaml"),
    (edit_config(model_config__network__hidden_dims=[7]), "checkpoint.pt does not fit config.yaml beside it"),
    (edit_config(model_config__netwerk=1), "model_config.netwerk: CEBaseline takes no such argument"),
    (reshuffle, "is no longer the one the run was trained with"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_a_damaged_run_is_reported_and_the_others_are_scored(
    damage: Callable[[Path], None], expected: str, two_runs: Path, tmp_path: Path
) -> None:
    damage(two_runs / "broken")
    request = Request(tmp_path / "out", CONFIGS / "source", checkpoint_dir=two_runs, no_plots=True)
    report = evaluate(request)
    assert [row["Run"] for row in report.failed] == ["broken"]
    failed = pd.read_csv(tmp_path / "out" / "failed-out.csv")
    assert expected in failed["Error"][0]
    assert set(pd.read_csv(tmp_path / "out" / "ood-out.csv")["Run"]) == {"good"}


def test_an_unreadable_ood_set_costs_its_own_rows_only(two_runs: Path, tmp_path: Path) -> None:
    request = Request(
        tmp_path / "out",
        CONFIGS / "source",
        checkpoint=[two_runs / "good"],
        ood_dataset=["anomalous_gaussian2d", "between"],
        no_plots=True,
    )
    config = yaml.safe_load((two_runs / "good" / "config.yaml").read_text())
    config["sources"]["between"]["root"] = str(tmp_path / "elsewhere")
    (two_runs / "good" / "config.yaml").write_text(yaml.safe_dump(config))
    report = evaluate(request)
    assert [row["OOD dataset"] for row in report.failed] == ["between"]
    assert "between" in report.failed[0]["Error"]
    assert set(report.ood["OOD dataset"]) == {"anomalous_gaussian2d"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"checkpoint_dir": Path("nowhere")}, "--checkpoint-dir: there is no folder 'nowhere'"),
        ({"checkpoint_dir": CONFIGS}, "no checkpoint.pt below"),
        ({}, "--checkpoint-dir: give a folder of runs"),
        ({"checkpoint": [Path("nowhere")]}, "'nowhere' is no finished run"),
    ],
)
def test_nothing_to_evaluate(
    arguments: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request(tmp_path, CONFIGS / "source", **arguments)
    assert expected in sentence_of(lambda: evaluate(request), capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"config_entries": ["sead"]},
            "--config-entries sead: no run has such a value; did you mean 'seed'?",
        ),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"output_folder": CONFIGS / "config.yaml"}, "--output-folder: cannot write to"),
    ],
)
def test_a_wrong_option_of_evaluate(
    arguments: dict[str, Any],
    expected: str,
    two_runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = Request(
        **{"output_folder": tmp_path, "checkpoint_dir": two_runs, **arguments}, source_dir=CONFIGS / "source"
    )
    assert expected in sentence_of(lambda: evaluate(request), capsys)


def test_weights_that_do_not_fit(
    trained: Get, small_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = trained("fc_ce_baseline").run.path
    more = (f"fixed.init_from={start}", "fixed.num_classes=4")
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, *more), capsys)
    assert "fixed.init_from: the run's weights do not fit the network of CEBaseline" in text
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, "fixed.init_from=nowhere"), capsys)
    assert "'nowhere' is no finished run" in text
    text = sentence_of(quick("fc_deep_ensemble", small_data, tmp_path, f"fixed.init_from=[{start},{start}]"), capsys)
    assert "fixed.init_from: 2 runs for 5 members" in text
    text = sentence_of(quick("fc_ce_baseline", small_data, tmp_path, f"fixed.init_from=[{start},{start}]"), capsys)
    assert "CEBaseline takes one run, got 2" in text


def test_weights_for_a_method_without_a_network(
    trained: Callable[[str], Trained],
    small_data: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = f"fixed.init_from={trained('fc_ce_baseline').run.path}"
    text = sentence_of(quick("fc_norm_flow", small_data, tmp_path, start), capsys)
    assert "fixed.init_from: NormFlow has no network" in text
