"""What the commands that send a grid to a cluster share: a command line, and points that are checked before they go."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from uncertainty_est.cluster.grid import expand
from uncertainty_est.config import as_dict

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

log = logging.getLogger(__name__)


def parser(description: str) -> argparse.ArgumentParser:
    """The overrides of ``train_local.py``, and ``--dry-run``."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--dry-run", action="store_true", help="only print the points and what Slurm is asked for")
    p.add_argument(
        "overrides", nargs="*", help="as of train_local.py, and seml.* and slurm.*: dataset=segment grid=seed …"
    )
    return p


def composed(overrides: Sequence[str]) -> tuple[DictConfig, list[dict[str, Any]]]:
    """The composed configuration, and the resolved ``fixed`` of every point.

    Every point is checked as far as it can be without data, its network and its losses included: a value that a
    constructor refuses is told here, and not by a job that waited for hours.

    Raises:
        ConfigError: with the problems of the first point that cannot be run.
        DataError: a run named by ``fixed.init_from`` is damaged.
    """
    # Here and not above: `--help` and a mistyped option should not wait for torch.
    from uncertainty_est.building import build_method
    from uncertainty_est.launch import points_of

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    points = points_of(config, CONFIGS / "source")
    for point in points:
        build_method(point)
    return config, points


def sbatch_options(config: DictConfig) -> dict[str, Any]:
    """Options of ``sbatch`` by name; those set to null are left out."""
    options = as_dict(OmegaConf.to_container(config.slurm.sbatch_options, resolve=True))
    return {key: value for key, value in options.items() if value is not None}


def name_of(config: DictConfig, points: Sequence[Mapping[str, Any]]) -> str:
    """``seml.name``, or method and data set."""
    return str(config.seml.name or f"{points[0]['model']}-{points[0]['dataset']}")


def describe(config: DictConfig, points: Sequence[Mapping[str, Any]]) -> None:
    """Print the points by what is swept, and what Slurm is asked for."""
    grid = as_dict(OmegaConf.to_container(config.grid, resolve=True)) if config.get("grid") else None
    for number, swept in enumerate(expand(grid)):
        log.info("%4d  %s", number, "  ".join(f"{key}={value}" for key, value in swept.items()) or "(no grid)")
    jobs = math.ceil(len(points) / config.slurm.experiments_per_job)
    options = " ".join(f"--{key}={value}" for key, value in sbatch_options(config).items())
    log.info("%s: %d points in %d jobs, each with %s", name_of(config, points), len(points), jobs, options)
