"""Go on with an interrupted run where it stopped, to the same weights as if it had never been interrupted."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import distributed

from uncertainty_est.callbacks import FiniteLoss
from uncertainty_est.data.loader import JointLoader
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import ConfigError, DataError, Preempted
from uncertainty_est.files import atomic_path, write_atomically
from uncertainty_est.models.base import Method
from uncertainty_est.run_folder import CONFIG_FILE, read_config
from uncertainty_est.same_run import settings_of

log = logging.getLogger(__name__)

FOLDER = "resume"
MINUTES = 10.0

# What schedulers send before they take a node away: a warning ahead of the time limit, and the end of a grace period.
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# Under DDP, steps between two rounds in which processes ask each other.
_STEPS_BETWEEN_ROUNDS = 10
_SECONDS_BETWEEN_QUESTIONS = 1.0


@dataclass(frozen=True)
class Resumption:
    """How a run is to be made resumable.

    Attributes:
        minutes: time between two checkpoints; 0 makes one after every step where there can be one.
        asked_to_leave: polled about once a second, where something other than a signal ends jobs.
    """

    minutes: float
    asked_to_leave: Callable[[], bool] | None = None

    @staticmethod
    def of(fixed: Mapping[str, Any], asked_to_leave: Callable[[], bool] | None = None) -> Resumption | None:
        """As ``fixed.resume`` and ``fixed.checkpoint_minutes`` say; ``None`` where neither is given."""
        minutes = fixed.get("checkpoint_minutes")
        if minutes is None and fixed.get("resume") is None:
            return None
        return Resumption(MINUTES if minutes is None else float(minutes), asked_to_leave)


def begun_run(parent: Path, name: str, fixed: Mapping[str, Any]) -> Path | None:
    """The folder below `parent` of a run with the same settings, finished or not; the newest of several.

    Args:
        parent: ``fixed.output_folder``.
        name: of the run's folder, from which those of further runs differ by a number.
        fixed: resolved.
    """
    ours = settings_of(fixed)
    found = []
    for folder in (parent / name, *parent.glob(f"{name}-*")):
        if not (folder / CONFIG_FILE).is_file():
            continue
        try:
            theirs = settings_of(read_config(folder))
        except (ConfigError, DataError) as error:
            log.warning("%s is not resumed: %s", folder, error)
            continue
        if theirs == ours:
            found.append(folder)
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


@contextmanager
def sole_process(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder. The system lets go of it when the process ends, however it does.

    Raises:
        ConfigError: another process holds it.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"fixed.resume: another process is at work on {run_dir}; wait for it, or end it, and start again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's (or restart's) `folder`; a damaged one gives way to the one before."""
    for path in sorted((folder / FOLDER).glob("[0-9]*.ckpt"), reverse=True):
        if _is_whole(path):
            return path
        log.warning("%s is damaged; the checkpoint before it is taken", path)
    return None


def _is_whole(path: Path) -> bool:
    """Whether every byte is as it was written: PyTorch's files are archives with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return False


def set_aside_logs(folder: Path) -> None:
    """Keep ``metrics.csv`` of the interrupted part as ``metrics-1.csv``, …: the logger would begin it anew."""
    for path in list(folder.rglob("metrics.csv")):
        number = len(list(path.parent.glob("metrics-*.csv"))) + 1
        path.rename(path.with_name(f"metrics-{number}.csv"))


def remove_checkpoints(folder: Path) -> None:
    """What is below the folder of a run that is finished, restarts included."""
    for path in (*folder.glob(f"{FOLDER}/*"), *folder.glob(f"restart*/{FOLDER}/*")):
        path.unlink()
    for path in (*folder.glob(FOLDER), *folder.glob(f"restart*/{FOLDER}")):
        path.rmdir()


class Resume(Checkpoint):
    """Writes checkpoints that hold all that training depends on, and puts it back.

    Beside what Lightning keeps (weights, buffers, optimizers, schedulers, loops, callbacks): the random generators of
    every process, global ones and the method's own, buffers that processes do not share, the position in the epoch of
    every training stream, and the best weights so far, since a run that goes on must not find those of a part that
    was lost. Checkpoints are made after a step in the midst of an epoch, at its end, and when training ends; not while
    gradients are accumulated, and not between the last step and validation. The newest two are kept.

    SIGTERM and SIGUSR1 make a checkpoint at the next opportunity and end the process by :class:`Preempted`, under DDP
    all processes after the same step.

    Args:
        folder: of the run, or of its restart.
        resumption: how often, and what else may end it.
        watch: looked at first: weights of a diverged run are nothing to go on from.
    """

    def __init__(self, folder: Path, resumption: Resumption, watch: FiniteLoss) -> None:
        self.folder = folder / FOLDER
        self.resumption = resumption
        self.watch = watch
        self._signal: int | None = None
        self._written_at = time.monotonic()
        self._asked_at = -_SECONDS_BETWEEN_QUESTIONS
        self._writing = False
        self._epoch_over = False
        self._pending: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------ Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning puts back what was there before when training ends.
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)
        if self._epoch_over:
            # Lightning would take the end of an epoch for its midst where max_steps is given.
            trainer.fit_loop.epoch_loop.restarting = False
        self.put_back(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = batch_idx + 1
        validates = trainer.val_check_batch
        between = number < trainer.num_training_batches and not (isinstance(validates, int) and number % validates == 0)
        if between and number % trainer.accumulate_grad_batches == 0:
            self._round(trainer, pl_module, number, epoch_over=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A number that every process takes part in.
        self._round(trainer, pl_module, 0, epoch_over=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, epoch_over=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._writing:
            return  # the weights alone, for the callback that keeps the best
        assert isinstance(pl_module, Method)
        loader = trainer.train_dataloader
        assert isinstance(loader, JointLoader)
        own = {"random": _random_state(pl_module.device), "method": pl_module.training_state()}
        if self._epoch_over:
            loader.end_epoch()
            for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                progress["completed"] = progress["processed"]
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [loader.state_dict()]
        checkpoint["resume"] = {
            "processes": _gather(own, trainer),
            "loader": loader.state_dict(),
            "epoch_over": self._epoch_over,
            "should_stop": trainer.should_stop,
            "files": _best_files(trainer) if trainer.is_global_zero else {},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["resume"]
        if len(state["processes"]) != trainer.world_size:
            raise ConfigError(
                f"fixed.resume: the run in {self.folder.parent} has {len(state['processes'])} processes, now there are"
                f" {trainer.world_size}; resume it with as many, or give it another fixed.output_folder"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, OODDataModule)
        data.training_position = state["loader"]
        self._epoch_over = state["epoch_over"]
        self._pending = state["processes"][trainer.global_rank]
        trainer.should_stop = state["should_stop"]
        if trainer.is_global_zero:
            for name, content in state["files"].items():
                _write_file(Path(name), content)
        trainer.strategy.barrier("best weights are there")

    def put_back(self, pl_module: pl.LightningModule) -> None:
        """Random generators and own state as they were, once; where nothing is left to train, call it after ``fit``."""
        if self._pending is None:
            return
        assert isinstance(pl_module, Method)
        pl_module.load_training_state(self._pending["method"])
        _set_random_state(self._pending["random"], pl_module.device)
        self._pending = None

    # ---------------------------------------------------------------------------------------------------------- writing

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _round(self, trainer: pl.Trainer, pl_module: pl.LightningModule, number: int, epoch_over: bool) -> None:
        if trainer.world_size > 1 and number % _STEPS_BETWEEN_ROUNDS:
            return
        leaves = self._signal is not None or self._asked()
        due = leaves or time.monotonic() - self._written_at >= 60 * self.resumption.minutes
        if trainer.world_size > 1:
            leaves = trainer.strategy.reduce_boolean_decision(leaves, all=False)
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self._write(trainer, pl_module, epoch_over)
        if leaves:
            done = trainer.fit_loop.total_batch_idx + 1
            message = f"told to end after {done} steps; the same command with fixed.resume=auto goes on from there"
            (log.warning if trainer.is_global_zero else log.debug)("%s (%s)", message, self.folder)
            raise Preempted(message)

    def _asked(self) -> bool:
        now = time.monotonic()
        if self.resumption.asked_to_leave is None or now - self._asked_at < _SECONDS_BETWEEN_QUESTIONS:
            return False
        self._asked_at = now
        return self.resumption.asked_to_leave()

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch_over: bool) -> None:
        self.watch.check(trainer, pl_module)
        path = self.folder / f"{trainer.fit_loop.total_batch_idx + 1:09d}.ckpt"
        self._epoch_over, self._writing = epoch_over, True
        try:
            if trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as temporary:
                    trainer.save_checkpoint(temporary, weights_only=False)
                for old in sorted(self.folder.glob("[0-9]*.ckpt"))[:-2]:
                    old.unlink()
            else:
                trainer.save_checkpoint(path, weights_only=False)  # takes part, and writes nothing
        finally:
            self._writing = False
        self._written_at = time.monotonic()


def _gather(own: Any, trainer: pl.Trainer) -> list[Any]:
    """What every process has, by rank."""
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(everyone, own)
    return everyone


def _best_files(trainer: pl.Trainer) -> dict[str, torch.Tensor]:
    """Content of the files that the callbacks would take the best weights from, by path."""
    names: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            names |= {callback.best_model_path, *callback.best_k_models} - {""}
    return {name: torch.from_numpy(np.fromfile(name, dtype=np.uint8)) for name in sorted(names)}


def _write_file(path: Path, content: torch.Tensor) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content.numpy().tobytes()))


def _random_state(device: torch.device) -> dict[str, Any]:
    """Of all global generators, in types that can be read without running code."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": numpy | {"state": numpy["state"] | {"key": keys}},
        "python": random.getstate(),
    }


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    numpy = state["numpy"]
    keys = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": keys}})
    random.setstate(state["python"])


class Srun(SLURMEnvironment):
    """Processes that ``srun`` started, for ``trainer=ddp_multinode``.

    Whoever submitted the job puts it back into the queue, on exit code 75, and not Lightning in the midst of a step.

    Raises:
        ConfigError: this process was not started by ``srun``.
    """

    def __init__(self) -> None:
        if "SLURM_NODEID" not in os.environ:
            raise ConfigError(
                "trainer_config.plugins: the processes of trainer=ddp_multinode are started by srun (see"
                " docs/cluster.md); on one machine choose trainer=ddp"
            )
        super().__init__(auto_requeue=False)


def job_key() -> str | None:
    """What names the start of a job of several processes that nobody of this package started; ``None`` elsewhere.

    Such processes (``srun``, ``torchrun``) inherit nothing from the first of them.
    """
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return "-".join(["slurm", *(os.environ.get(part, "0") for part in parts)])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parts = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        return "-".join(["torchrun", *(os.environ.get(part, "0") for part in parts)])
    return None


def job_rank() -> int:
    """Number of this process in a job that has a :func:`job_key`."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
