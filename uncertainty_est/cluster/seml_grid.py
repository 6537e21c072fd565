"""Add a grid to SEML's database: ``python -m uncertainty_est.cluster.seml_grid dataset=segment model=… grid=seed``.

Takes the command line of ``train_local.py``; ``seml.*`` and ``slurm.*`` are the sections of SEML's file. The points are
those that ``train_local.py`` would run one after another; ``seml <name> start`` sends them to Slurm.
"""

from __future__ import annotations

import ast
import getpass
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.cluster.command import ROOT, composed, describe, name_of, parser, sbatch_options
from uncertainty_est.cluster.grid import sections
from uncertainty_est.config import as_dict
from uncertainty_est.errors import ConfigError
from uncertainty_est.files import make_folder, write_text

log = logging.getLogger("uncertainty_est.cluster.seml_grid")  # not __name__: a command's is __main__

# SEML keeps the environment of this command in its database and starts jobs with it: what a job needs goes there, and
# nothing else, such as tokens.
_PASSED_ON = ("HOME", "LANG", "LD_LIBRARY_PATH", "XDG_CONFIG_HOME", "TMPDIR", "DATA_ROOT", "PYTHONPATH", "TERM")
_PASSED_ON_PREFIXES = ("LC_", "CONDA_", "SLURM_CONF", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NCCL_", "GLOO_")


def seml_file(config: DictConfig, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Content of SEML's file for a composed configuration: ``seml``, ``slurm``, ``fixed`` and ``grid``.

    Raises:
        ConfigError: jobs are to be sent again before their time limit, but runs would begin anew; or Lightning would
            start a run's further processes, each of them as an experiment of its own.
    """
    if any(_lightning_starts_processes(point["trainer_config"]) for point in points):
        raise ConfigError(
            "trainer: SEML starts the processes of a run by srun; choose trainer=ddp_multinode, with"
            " fixed.trainer_config.num_nodes=1 on one machine"
        )
    seml = as_dict(OmegaConf.to_container(config.seml, resolve=True))
    seml = {key: value for key, value in seml.items() if value is not None} | {"name": name_of(config, points)}
    if "reschedule_timeout" in seml and any(point["resume"] is None for point in points):
        raise ConfigError(
            "seml.reschedule_timeout: a job that is sent again would begin anew; set fixed.resume=auto as well"
        )
    slurm = as_dict(OmegaConf.to_container(config.slurm, resolve=True)) | {"sbatch_options": sbatch_options(config)}
    content = {"seml": seml, "slurm": [slurm]} | sections([dict(point) for point in points])
    return {name: _quoted(section) for name, section in content.items()}


def _lightning_starts_processes(trainer_config: Mapping[str, Any]) -> bool:
    return str(trainer_config.get("strategy")).startswith("ddp") and not trainer_config.get("plugins")


def _quoted(node: Any) -> Any:
    """`node` with quotes around text that SEML, when it reads its file, would take for a Python literal."""
    if isinstance(node, dict):
        return {key: _quoted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_quoted(value) for value in node]
    if not isinstance(node, str):
        return node
    try:
        ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return node
    return repr(node)


def add(path: Path, collection: str) -> None:
    """Add SEML's file `path` to a collection.

    Raises:
        ConfigError: SEML refuses, or the database cannot be reached.
    """
    # Jobs find `seml` and `python` on the path, and must find those of this environment.
    passed = {
        key: value for key, value in os.environ.items() if key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES)
    }
    passed["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    passed["USER"] = getpass.getuser()
    command = [sys.executable, "-W", "ignore", "-m", "seml", collection, "add", str(path)]
    done = subprocess.run(command, env=passed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ConfigError(f"seml {collection} add: {lines[-1] if lines else f'exit code {done.returncode}'} ({path})")
    for line in (done.stdout + done.stderr).splitlines():
        log.info("%s", line.rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose, check every point, write ``slurm/<name>.yaml`` and add it to the collection ``<name>``."""
    command = parser("Add a grid of runs to SEML's database, from where `seml <name> start` sends it to Slurm.")
    given = command.parse_args(arguments)
    log_to_console()
    config, points = composed(given.overrides)
    content = seml_file(config, points)
    describe(config, points)
    if given.dry_run:
        return
    name = name_of(config, points)
    path = make_folder(ROOT / config.seml.output_dir, "seml.output_dir") / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    add(path, name)
    log.info("start: seml %s start", name)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
