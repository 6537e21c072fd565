"""A grid's points are SEML's, with dotted keys and Python's own numbers."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sacred.config.custom_containers import make_read_only
from seml.experiment.config import generate_configs, read_config

from tests.conftest import CONFIGS, ROOT, compose_points
from uncertainty_est.cluster.command import composed
from uncertainty_est.cluster.grid import check_keys, expand, sections
from uncertainty_est.cluster.seml_grid import seml_file
from uncertainty_est.errors import ConfigError
from uncertainty_est.run import run

GRIDS: list[dict[str, Any]] = [
    {"seed": {"type": "choice", "options": [3, 1, 2]}},
    {"model_config.lr": {"type": "loguniform", "min": 0.01, "max": 100, "num": 5}},
    {
        "seed": {"type": "range", "min": 0, "max": 4, "step": 2},
        "w": {"type": "uniform", "min": 0, "max": 1, "num": 3},
    },
    {
        "a": {"type": "choice", "options": [1, 2], "zip_id": "z"},
        "b": {"type": "choice", "options": ["x", "y"], "zip_id": "z"},
        "c": {"type": "choice", "options": [True, False]},
    },
]


@pytest.mark.parametrize("grid", GRIDS)
def test_points_are_semls_in_number_order_and_value(grid: dict[str, Any]) -> None:
    ours = expand(grid)
    theirs = generate_configs({"grid": grid})

    def unflat(point: dict[str, Any]) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in point.items():
            *parents, last = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return nested

    assert [unflat(point) for point in ours] == theirs


def test_numbers_are_pythons_own() -> None:
    for grid in GRIDS:
        for point in expand(grid):
            assert not any(isinstance(value, np.generic) for value in point.values())


def test_no_grid_is_one_point() -> None:
    assert expand(None) == [{}] == expand({})


def test_a_block_that_seml_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="grid: .*nonsense"):
        expand({"seed": {"type": "nonsense"}})


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"grid\.sed: there is no fixed\.sed to sweep; did you mean 'seed'\?"):
        check_keys([{"sed": 1}], {"seed", "model_config.lr"})


def composed_points(*overrides: str) -> list[dict[str, Any]]:
    return compose_points("dataset=segment", "model=fc_ce_baseline", "logger=wandb", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["grid=seed"],  # the logger's name has the seed in it, and goes along
        ["+grid.batch_size={type: choice, options: [1, 2]}", "+grid.seed={type: choice, options: [1, 2]}"],
        ["+grid.test_ood_datasets={type: choice, options: [[constant], [constant, uniform_noise]]}"],
        [],
    ],
)
def test_sections_expand_to_the_very_points(overrides: list[str]) -> None:
    points = composed_points(*overrides)
    assert generate_configs(sections(points)) == points


def test_sections_tell_numbers_from_truth_values_and_lists_of_keys() -> None:
    points: list[dict[str, Any]] = [{"a": 1, "b": {"x": 1}, "c": 0}, {"a": True, "b": {"y": 1}, "c": 0}]
    found = sections(points)
    assert found["fixed"] == {"c": 0}
    assert [(point["a"], point["b"]) for point in generate_configs(found)] == [(1, {"x": 1}), (True, {"y": 1})]


GRID_FILES = sorted(path.stem for path in (CONFIGS / "grid").glob("*.yaml"))
SWEPT = {
    "bottleneck": "fc_autoencoder",
    "clf_weight": "fc_vera_supervised",
    "p_control": "fc_vera_supervised",
    "pyxce": "fc_mcmc_supervised",
    "neg_entropy_weight": "fc_vera_priornet",
    "fold": "fc_leave_out_ensemble",
    "seed": "fc_ddu",
}


@pytest.mark.parametrize("grid", GRID_FILES)
def test_every_grid_is_of_keys_that_a_method_has(grid: str) -> None:
    sizes = {
        "seed": 5,
        "fold": 5,
        "bottleneck": 4,
        "clf_weight": 5,
        "pyxce": 5,
        "p_control": 4,
        "neg_entropy_weight": 6,
    }
    parts = grid.split("-")
    points = compose_points("dataset=segment", f"model={SWEPT[parts[-1]]}", f"grid={grid}")
    assert len(points) == math.prod(sizes.get(part, 5) for part in parts)
    assert len({repr(point) for point in points}) == len(points)


def test_the_file_for_seml_reads_as_the_points(tmp_path: Path) -> None:
    """By SEML's own reader, which takes text that looks like Python for Python."""
    config, points = composed(["dataset=segment", "model=fc_ce_baseline", "grid=seed", "fixed.output_folder='17'"])
    path = ROOT / "slurm" / "test_grid.yaml"
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text(yaml.safe_dump(seml_file(config, points)))
        seml, slurm, experiment = read_config(path)
    finally:
        path.unlink()
    assert generate_configs(experiment) == points
    assert seml["executable"] == "uncertainty_est/cluster/experiment.py"
    assert Path(seml["working_dir"]) == ROOT and seml["stash_all_py_files"]
    assert slurm[0]["sbatch_options"]["gres"] == "gpu:1" and seml["name"] == "fc_ce_baseline-segment"


def test_sending_jobs_again_needs_resumption() -> None:
    overrides = ["dataset=segment", "model=fc_ce_baseline", "seml.reschedule_timeout=120"]
    with pytest.raises(ConfigError, match=r"seml\.reschedule_timeout: .*fixed\.resume=auto"):
        seml_file(*composed(overrides))
    assert seml_file(*composed([*overrides, "fixed.resume=auto"]))["seml"]["reschedule_timeout"] == 120


def test_processes_of_a_run_are_started_by_srun() -> None:
    with pytest.raises(ConfigError, match="trainer: SEML starts the processes of a run by srun"):
        seml_file(*composed(["dataset=segment", "model=fc_ce_baseline", "trainer=ddp"]))
    content = seml_file(*composed(["dataset=segment", "model=fc_ce_baseline", "trainer=ddp_multinode"]))
    assert content["fixed"]["trainer_config"]["plugins"] == [{"_target_": "uncertainty_est.resume.Srun"}]


def test_a_point_that_a_constructor_refuses_is_found_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="clf_weight must be at least 0"):
        composed(["dataset=segment", "model=fc_ssm", "+grid.model_config.clf_weight={type: choice, options: [1, -1]}"])


def test_what_slurm_runs_takes_the_keys_of_run() -> None:
    from uncertainty_est.cluster.experiment import experiment, plain, train

    assert inspect.signature(train) == inspect.signature(run)
    assert experiment.default_command == "train"
    kept = make_read_only({"a": [1, {"b": (2,)}]})
    assert yaml.safe_dump(plain(kept)) == yaml.safe_dump({"a": [1, {"b": [2]}]})
