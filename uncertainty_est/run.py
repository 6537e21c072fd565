"""One run, from a resolved configuration to a folder that holds everything needed to use and judge it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from uncertainty_est import checkpoints
from uncertainty_est.building import build_data, build_method
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluation.scoring import score_run
from uncertainty_est.evaluation.tables import results_of
from uncertainty_est.files import make_folder, make_new_folder, write_json, write_text
from uncertainty_est.models.base import Method
from uncertainty_est.resume import (
    Resumption,
    begun_run,
    job_key,
    job_rank,
    remove_checkpoints,
    sole_process,
)
from uncertainty_est.run_folder import RESULTS_FILE
from uncertainty_est.settings import check_settings
from uncertainty_est.training import check_trainer, fit_posthoc, train

log = logging.getLogger(__name__)

# Set by the process that makes the run folder; the ranks that Lightning starts from it inherit it.
_RUN_DIR_VARIABLE = "UNCERTAINTY_EST_RUN_DIR"


# Seconds for which processes of one job wait for the first one's folder.
_PATIENCE = 300


def run(
    *,
    model: str,
    dataset: str,
    data_shape: Sequence[int],
    num_classes: int,
    model_config: Mapping[str, Any],
    transform: Mapping[str, Any],
    sources: Mapping[str, Any],
    trainer_config: Mapping[str, Any],
    test_ood_datasets: Sequence[str] = (),
    val_ood_datasets: Sequence[str] = (),
    ood_dataset: str | None = None,
    ood_groups: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 128,
    eval_batch_size: int = 512,
    data_root: str = "../data",
    path: str | None = None,
    split_seed: int = 1,
    seed: int = 1,
    init_from: str | Sequence[str] | None = None,
    output_folder: str = "runs",
    checkpoint_config: Mapping[str, Any] | None = None,
    earlystop_config: Mapping[str, Any] | None = None,
    averaging_config: Mapping[str, Any] | None = None,
    logger: Mapping[str, Any] | None = None,
    resume: str | None = None,
    checkpoint_minutes: float | None = None,
    compile: bool = False,
    channels_last: bool = False,
    on_divergence: str = "stop",
) -> dict[str, Any]:
    """Build, fit what is fitted before training, train, fit what is fitted after it, save and score one method.

    This signature is the schema of ``fixed``.

    Args:
        model: name of the model configuration; with `dataset` and `seed` it names the run folder.
        dataset: name of the in-distribution data set.
        data_shape: shape of one input, ``(C, H, W)`` or ``(D,)``.
        num_classes: C.
        model_config: node of the method.
        transform: node that turns a source's tensors into the network's input.
        sources: node of every data set, by name.
        trainer_config: node of ``pytorch_lightning.Trainer``.
        test_ood_datasets: OOD sets that the method is scored on.
        val_ood_datasets: OOD sets for ``val/ood`` and for tuning; never the same as a test set.
        ood_dataset: outliers that the method trains on; never the same as a test set.
        ood_groups: name of a group (near, far) to names of OOD sets, whose means get rows of their own.
        batch_size: of training, per process.
        eval_batch_size: of validation, fitting and scoring.
        data_root: folder of the data sets' files.
        path: folder or file of the data sets `folder`, `npz` and `table`, which are one's own.
        split_seed: decides which samples are training, validation and test, and nothing else.
        seed: of initialisation and order of the data.
        init_from: folder of a finished run, or of several, whose weights to start from.
        output_folder: where the run's own new folder is made.
        checkpoint_config: node of the checkpoint callback; ``None`` keeps the last weights.
        earlystop_config: node of the early-stopping callback; ``None`` trains to the end.
        averaging_config: node of the callback that averages weights over steps; ``None`` takes them as they are.
        logger: partial node of a Lightning logger; ``None`` logs nothing.
        resume: ``auto`` goes on with a run of the same settings in `output_folder` where it was interrupted, to the
            same weights (on a CPU, to the bit), and returns the results of one that is finished; ``None`` always
            begins a new run.
        checkpoint_minutes: time between two checkpoints to resume from; ``None`` is 10 with `resume`, else there are
            none.
        compile: let torch compile the networks for training; the first steps take a minute more.
        channels_last: keep images and the weights of convolutions with the channels innermost while training.
        on_divergence: what to do when the training loss is no longer a number or exceeds 1e8 in magnitude: ``stop``
            ends the run with an error, what was logged stays; ``restart`` trains anew from fresh weights with a seed
            that `seed` decides, at most three times, and logs into ``restart<number>/`` of the run's folder; ``keep``
            goes on to scoring with the best monitored weights or, without any, with weights from before the
            divergence. Under DDP all ranks do the same.

    Returns:
        The run's folder and its results, also written to ``results.json``. Empty on ranks other than 0. Where training
        diverged, ``divergence`` says so: the number of ``restarts`` and the ``seed`` that held, or what was ``found``
        and which weights were ``kept``.

    Raises:
        ConfigError: a key, name or combination that cannot be run, or another process at work on a run to `resume`.
        DataError: a data set that cannot be used.
        TrainingError: the loss diverged.
        Preempted: the process was told to end, and has made a checkpoint to resume from.
    """
    return run_point(dict(locals()))  # the first statement, so that nothing but the arguments is in it


def run_point(fixed: dict[str, Any], asked_to_leave: Callable[[], bool] | None = None) -> dict[str, Any]:
    """:func:`run` with its keywords as a mapping, where not only signals may end it.

    Args:
        fixed: all keywords of :func:`run`.
        asked_to_leave: polled while a run trains that can be resumed; true makes it raise :class:`Preempted`.
    """
    check_settings(fixed)
    begun = None
    if fixed["resume"]:
        begun = begun_run(Path(fixed["output_folder"]), run_name(fixed), fixed)
        if begun is not None and (begun / RESULTS_FILE).is_file():
            log.info("finished before: %s", begun)
            return json.loads((begun / RESULTS_FILE).read_text())
    pl.seed_everything(fixed["seed"], workers=True, verbose=False)

    data = build_data(fixed)
    method = build_method(fixed)
    check_trainer(fixed["trainer_config"])
    data.prepare_data()
    data.setup("fit")

    run_dir = shared_run_dir(fixed, begun)
    resumption = Resumption.of(fixed, asked_to_leave)
    with sole_process(run_dir) if fixed["resume"] and is_first_process() else nullcontext():
        return _train_and_score(fixed, method, data, run_dir, resumption)


def _train_and_score(
    fixed: Mapping[str, Any], method: Method, data: OODDataModule, run_dir: Path, resumption: Resumption | None
) -> dict[str, Any]:
    """What :func:`run_point` does in the folder of its own."""
    checkpoints.save_config(run_dir, fixed)
    checkpoints.save_splits(run_dir, data.split_indices())
    trainer, method, divergence = train(fixed, method, data, run_dir, resumption)
    fit_posthoc(trainer, method, data)

    results: dict[str, Any] = {}
    if trainer.is_global_zero:
        checkpoints.save_weights(run_dir, method)
        device = trainer.strategy.root_device
        scored = score_run(method, data, fixed["test_ood_datasets"], device=device)
        groups, seed = fixed["ood_groups"] or {}, fixed["seed"]
        results = {"run_dir": str(run_dir)} | divergence | results_of(scored, groups, seed=seed)
        write_json(run_dir / RESULTS_FILE, results)
        remove_checkpoints(run_dir)
        log.info("run folder: %s", run_dir)
    trainer.strategy.barrier("scored")
    if trainer.is_global_zero and (key := job_key()) is not None:
        for note in Path(fixed["output_folder"]).glob(f".{key.rpartition('-')[0]}-*"):  # of earlier starts as well
            note.unlink()
    return results


def run_name(fixed: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-seed<seed>``, the name of the run's folder."""
    return f"{fixed['model']}-{fixed['dataset']}-seed{fixed['seed']}"


def is_first_process() -> bool:
    """Whether this is the process of a run that makes its folder."""
    return not (job_rank() if job_key() is not None else int(os.environ.get("LOCAL_RANK", "0")))


def shared_run_dir(fixed: Mapping[str, Any], begun: Path | None = None) -> Path:
    """The folder `begun`, or a new one in ``output_folder``; the same one for every rank of a run.

    Raises:
        ConfigError: it cannot be made, or the first process of a job did not make it.
    """
    inherited, key, is_first = os.environ.get(_RUN_DIR_VARIABLE), job_key(), is_first_process()
    if key is None and inherited and not is_first:
        return Path(inherited)
    parent = make_folder(Path(fixed["output_folder"]), "fixed.output_folder")
    note = parent / f".{key}"
    if key is not None and not is_first:
        return _read_note(note)
    run_dir = begun or make_new_folder(parent, run_name(fixed))
    os.environ[_RUN_DIR_VARIABLE] = str(run_dir.resolve())
    if key is not None:
        write_text(note, str(run_dir.resolve()))
    return run_dir


def _read_note(note: Path) -> Path:
    """What the first process of a job has written."""
    for _ in range(_PATIENCE):
        if note.is_file():
            return Path(note.read_text())
        time.sleep(1)
    raise ConfigError(
        f"fixed.output_folder: the first process of the job wrote no {note} in {_PATIENCE} seconds; give a folder that"
        f" all nodes share"
    )
