"""A grid as a job array of Slurm, without a database: ``python -m uncertainty_est.cluster.slurm_array … --submit``.

Takes the command line of ``train_local.py`` and the section ``slurm.*``; the points are SEML's. Writes
``slurm/<name>/`` with a file for every point and ``job.sh``; ``python -m uncertainty_est.cluster.status slurm/<name>``
tells how far it is.
"""

from __future__ import annotations

import logging
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.cluster.command import ROOT, composed, describe, name_of, parser, sbatch_options
from uncertainty_est.cluster.points import POINTS, SCRIPT, point_file
from uncertainty_est.errors import ConfigError
from uncertainty_est.files import make_folder, write_text

log = logging.getLogger("uncertainty_est.cluster.slurm_array")  # not __name__: a command's is __main__

# Time for a checkpoint before the limit; Slurm may be up to half a minute early or late.
_WARNING_SECONDS = 120


def job_script(config: DictConfig, number: int, folder: Path, name: str) -> str:
    """The file for ``sbatch``: `number` points, ``slurm.experiments_per_job`` of them in each task of the array.

    The process that starts the points takes the place of the shell, so that Slurm's warning reaches it.
    """
    per_job = config.slurm.experiments_per_job
    options = {
        "job-name": name,
        "array": f"0-{math.ceil(number / per_job) - 1}",
        "output": folder / "%a.out",
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{_WARNING_SECONDS}",
    } | sbatch_options(config)
    lines = [f"#SBATCH --{key}" + ("" if value is None else f"={value}") for key, value in options.items()]
    command = [sys.executable, "-m", "uncertainty_est.cluster.points", str(folder), "--per-job", str(per_job), "--task"]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"cd {shlex.quote(str(ROOT))}",
            f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def write_array(config: DictConfig, points: Sequence[Mapping[str, Any]], folder: Path, name: str) -> Path:
    """Write the files of an array, and return the one for ``sbatch``. Every point resumes.

    Raises:
        ConfigError: the folder holds other points.
    """
    files = {
        point_file(folder, i): yaml.safe_dump(dict(point) | {"resume": "auto"}, sort_keys=False)
        for i, point in enumerate(points)
    }
    there = {path: path.read_text() for path in folder.glob(f"{POINTS}/*.yaml")}
    if there and there != files:
        raise ConfigError(f"seml.name: {folder} holds other points; choose another name, or remove the folder")
    make_folder(folder / POINTS, "seml.output_dir")
    for path, text in files.items():
        write_text(path, text)
    script = folder / SCRIPT
    write_text(script, job_script(config, len(points), folder, name))
    return script


def submit(script: Path, tasks: Sequence[int] | None = None) -> str:
    """Hand `script` to ``sbatch``, all of its tasks or some; returns what Slurm answers.

    Raises:
        ConfigError: there is no Slurm here, or it refuses.
    """
    command = ["sbatch", *([f"--array={','.join(map(str, tasks))}"] if tasks is not None else []), str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no sbatch on this machine; on the cluster: {shlex.join(command)}") from error
    if done.returncode:
        raise ConfigError(f"slurm: sbatch refuses: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose, check every point, write the array, and submit it if that was asked for."""
    command = parser("Write a grid of runs as a job array of Slurm, without a database.")
    command.add_argument("--submit", action="store_true", help="hand it to sbatch as well")
    given = command.parse_args(arguments)
    log_to_console()
    config, points = composed(given.overrides)
    describe(config, points)
    if given.dry_run:
        return
    name = name_of(config, points)
    script = write_array(config, points, ROOT / config.seml.output_dir / name, name)
    log.info("%s", submit(script) if given.submit else f"submit: sbatch {script}")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
