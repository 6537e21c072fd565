"""Other processes, forked from this one: they behave as new ones do, without the seconds that imports take."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import distributed

from tests.conftest import ROOT

FORK = multiprocessing.get_context("fork")


class Command:
    """A command line that runs in a process of its own.

    Args:
        words: what stands behind ``python``: a script, or ``-m`` and a module, and arguments.
        cwd: the process's working directory, from which the script is found as well.
    """

    def __init__(self, words: Sequence[str], cwd: Path = ROOT) -> None:
        self._printed = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (closed by wait)
        self._process = FORK.Process(target=_run, args=(words, cwd, [file.fileno() for file in self._printed]))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """How it ended and what it printed; to be called once."""
        self._process.join(timeout=300)
        assert self._process.exitcode is not None, "it does not end"
        printed = []
        for stream in self._printed:
            with stream as file:
                file.seek(0)
                printed.append(file.read())
        return subprocess.CompletedProcess([], self._process.exitcode, *printed)


def _run(words: Sequence[str], cwd: Path, printed: Sequence[int]) -> None:
    for number, file in enumerate(printed, 1):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    warnings.resetwarnings()  # of which pytest makes errors
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(cwd / words[0]), *words[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")


def in_two_processes(work: Callable[..., None], folder: Path, *arguments: Any) -> list[int | None]:
    """Call ``work(rank, *arguments)`` in two processes of one gloo group, as if ``torchrun`` had started them.

    Args:
        work: what each of them does.
        folder: where they meet.
        arguments: for `work`, as they are here.

    Returns:
        Their exit codes.
    """
    meeting = folder / f"meeting{len(list(folder.glob('meeting*')))}"
    processes = [FORK.Process(target=_member, args=(rank, meeting, work, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def fit_in_two_processes(
    method: pl.LightningModule, loaders: Sequence[Any], folder: Path, epochs: int, callback: pl.Callback
) -> list[int | None]:
    """Let Lightning train `method` by DDP in two processes, and return their exit codes.

    Args:
        method: on the CPU.
        loaders: of training and validation.
        folder: where the processes meet.
        epochs: of training.
        callback: sees what each process does.
    """

    def fit(rank: int) -> None:
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=epochs,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
        )
        trainer.fit(method, *loaders)

    return in_two_processes(fit, folder)


def _member(rank: int, meeting: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    warnings.resetwarnings()  # of which pytest makes errors
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "of_a_test"}
    os.environ.update({key: str(value) for key, value in own.items()})
    patience = timedelta(seconds=120)  # with a rank that has failed
    distributed.init_process_group("gloo", f"file://{meeting}", timeout=patience, rank=rank, world_size=2)
    work(rank, *arguments)
    distributed.destroy_process_group()
