"""One task of a job array: starts its points, hands signals on, tells how each ended, and asks to be sent again.

A point is a process of its own (several, where ``srun`` starts them), and leaves ``<number>.json`` beside its settings.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from uncertainty_est.cli import log_to_console
from uncertainty_est.errors import USER_ERRORS, ConfigError, Preempted
from uncertainty_est.files import write_json

POINTS = "points"
SCRIPT = "job.sh"

MODULE = "uncertainty_est.cluster.points"  # not __name__: a command's is __main__
log = logging.getLogger(MODULE)


def point_file(folder: Path, number: int) -> Path:
    """Settings of a point."""
    return folder / POINTS / f"{number:04d}.yaml"


def state_file(folder: Path, number: int) -> Path:
    """What became of a point: ``state`` (running, done, failed, stopped), and what goes with it."""
    return folder / POINTS / f"{number:04d}.json"


def run_tasks(folder: Path, numbers: Sequence[int]) -> int:
    """Run points side by side; returns 0, or the first exit code that is not.

    SIGUSR1, Slurm's warning, and SIGTERM are handed on. Where points left on a warning, with a checkpoint, the task is
    put back into the queue.
    """
    received: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, hand_on)
    launcher = ["srun"] if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else []
    for point in numbers:
        command = [*launcher, sys.executable, "-m", MODULE, str(folder), "--point", str(point)]
        processes.append(subprocess.Popen(command))
    codes = [process.wait() for process in processes]
    if Preempted.CODE in codes and signal.SIGUSR1 in received:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        subprocess.run(["scontrol", "requeue", job], check=True)
    return next((code for code in codes if code), 0)


def run_one(folder: Path, number: int) -> None:
    """Run one point in this process and write down how it ended.

    Raises:
        SystemExit: with 1 if it failed, with 75 if it was told to end and can go on.
    """
    path = point_file(folder, number)
    first = os.environ.get("SLURM_PROCID", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"

    def tell(state: str, **more: Any) -> None:
        if first:
            job = {key.lower(): os.environ.get(key) for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")}
            about = {"state": state, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
            write_json(state_file(folder, number), about | job | more)

    tell("running")
    try:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist")
        from uncertainty_est.run import run

        results = run(**yaml.safe_load(path.read_text()))
    except Preempted as preempted:
        tell("stopped", reason=str(preempted))
        raise
    except Exception as error:  # noqa: BLE001 (the reason is kept, and the process fails)
        tell("failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
        if not isinstance(error, USER_ERRORS):
            traceback.print_exc()
        else:
            log.error("%s", error)
        raise SystemExit(1) from None
    tell("done", run_dir=results.get("run_dir"))


def parser() -> argparse.ArgumentParser:
    """What ``job.sh`` calls, and what a task calls for each of its points."""
    p = argparse.ArgumentParser(description="Run points of a job array (called by its job.sh).")
    p.add_argument("folder", type=Path, help="of the array")
    p.add_argument("--per-job", type=int, default=1, help="points in a task")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=int, help="run the points of this task, each in a process")
    what.add_argument("--point", type=int, help="run this point in this process")
    return p


def main() -> int:
    """Points of a task of the array, or one of them."""
    given = parser().parse_args()
    log_to_console()
    if given.point is not None:
        run_one(given.folder, given.point)
        return 0
    first = given.task * given.per_job
    numbers = [n for n in range(first, first + given.per_job) if point_file(given.folder, n).is_file()]
    return run_tasks(given.folder, numbers)


if __name__ == "__main__":
    raise SystemExit(main())
