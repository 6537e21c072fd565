"""How far a job array is: ``python -m uncertainty_est.cluster.status slurm/<name> [--retry-failed]``."""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.cluster.points import POINTS, SCRIPT, state_file
from uncertainty_est.cluster.slurm_array import submit
from uncertainty_est.errors import ConfigError

# What is sent again by --retry-failed.
RETRIED = ("failed", "stopped", "lost", "missing")

log = logging.getLogger("uncertainty_est.cluster.status")  # not __name__: a command's is __main__


@dataclass(frozen=True)
class PointStatus:
    """A point of an array.

    Attributes:
        number: of the point.
        state: done, failed, running, waiting (in the queue), stopped (with a checkpoint, not in the queue), lost (it
            began, and its job is gone without a word) or missing (it never began).
        detail: the run's folder, or the last line of the reason.
    """

    number: int
    state: str
    detail: str = ""


def status_of(folder: Path, queue: set[tuple[str, str]] | None) -> list[PointStatus]:
    """Every point of the array in `folder`.

    Args:
        folder: ``slurm/<name>``.
        queue: job and task of everything that Slurm has in its queue or runs, see :func:`slurm_queue`; ``None`` where
            that is unknown, and what began counts as running.

    Raises:
        ConfigError: there is no array.
    """
    numbers = sorted(int(path.stem) for path in folder.glob(f"{POINTS}/*.yaml"))
    if not numbers:
        raise ConfigError(f"'{folder}' is no job array: there is no {POINTS}/0000.yaml in it; give slurm/<name>")
    per_job = _points_per_job(folder)
    tasks_queued = {task for _, task in queue or ()}
    found = []
    for number in numbers:
        path = state_file(folder, number)
        queued = str(number // per_job) in tasks_queued
        if not path.is_file():
            found.append(PointStatus(number, "waiting" if queued else "missing"))
            continue
        content = json.loads(path.read_text())
        state, detail = content["state"], content.get("run_dir") or content.get("reason") or ""
        if state == "running" and queue is not None:
            state = "running" if queued else "lost"
        elif state in ("stopped", "failed") and queued:
            state = "waiting"
        found.append(PointStatus(number, state, detail))
    return found


def slurm_queue(name: str) -> set[tuple[str, str]] | None:
    """Job and task of what Slurm has under a name; ``None`` where there is no Slurm."""
    command = ["squeue", "--noheader", "--array", f"--name={name}", "--format=%F %K"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return {(job, task) for job, task in (line.split() for line in done.stdout.splitlines() if line.strip())}


def retry(folder: Path, points: Sequence[PointStatus]) -> str:
    """Submit the tasks of points that failed, stopped, were lost or never began; returns what Slurm answers."""
    per_job = _points_per_job(folder)
    tasks = sorted({point.number // per_job for point in points if point.state in RETRIED})
    return submit(folder / SCRIPT, tasks) if tasks else "nothing to retry"


def _points_per_job(folder: Path) -> int:
    found = re.search(r"--per-job (\d+)", (folder / SCRIPT).read_text())
    if found is None:
        raise ConfigError(f"{folder / SCRIPT} is not as slurm_array wrote it; write the array again")
    return int(found[1])


def main() -> int:
    """Tell; returns 0 if all points are done, else 1."""
    p = argparse.ArgumentParser(description="Tell how far a job array is.")
    p.add_argument("folder", type=Path, help="slurm/<name>")
    p.add_argument("--retry-failed", action="store_true", help="submit what failed, stopped, was lost or is missing")
    given = p.parse_args()
    log_to_console()
    folder = given.folder.resolve()
    points = status_of(folder, slurm_queue(folder.name))
    for point in points:
        log.info("%4d  %-8s %s", point.number, point.state, point.detail)
    log.info("%s", ", ".join(f"{n} {state}" for state, n in Counter(point.state for point in points).items()))
    if given.retry_failed:
        log.info("%s", retry(folder, points))
    return 0 if all(point.state == "done" for point in points) else 1


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
