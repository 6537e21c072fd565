"""One run, from a resolved configuration to a folder that holds everything needed to use and judge it."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed

from uncertainty_est import checkpoints
from uncertainty_est.callbacks import FiniteLoss, OODValidation, Pictures, ProgressBar
from uncertainty_est.config import as_names, build
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import ConfigError, TrainingError
from uncertainty_est.evaluation.scoring import score_run
from uncertainty_est.evaluation.tables import results_of
from uncertainty_est.files import make_folder, make_new_folder, write_json, write_text
from uncertainty_est.models.base import Method
from uncertainty_est.prefit import prefit
from uncertainty_est.resume import (
    Resume,
    Resumption,
    begun_run,
    job_key,
    job_rank,
    last_checkpoint,
    remove_checkpoints,
    set_aside_logs,
)
from uncertainty_est.run_folder import RESULTS_FILE, run_folder
from uncertainty_est.settings import check_settings

log = logging.getLogger(__name__)

# Set by the process that makes the run folder; the ranks that Lightning starts from it inherit it.
_RUN_DIR_VARIABLE = "UNCERTAINTY_EST_RUN_DIR"

MAX_RESTARTS = 3

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
        ConfigError: a key, name or combination that cannot be run.
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
    seed = fixed["seed"]
    pl.seed_everything(seed, workers=True, verbose=False)

    data = build_data(fixed)
    method = build_method(fixed)
    check_trainer(fixed["trainer_config"])
    data.prepare_data()
    data.setup("fit")

    run_dir = shared_run_dir(fixed, begun)
    checkpoints.save_config(run_dir, fixed)
    checkpoints.save_splits(run_dir, data.split_indices())
    trainer, method, divergence = train(fixed, method, data, run_dir, Resumption.of(fixed, asked_to_leave))
    fit_posthoc(trainer, method, data)

    results: dict[str, Any] = {}
    if trainer.is_global_zero:
        checkpoints.save_weights(run_dir, method)
        device = trainer.strategy.root_device
        scored = score_run(method, data, fixed["test_ood_datasets"], device=device)
        results = {"run_dir": str(run_dir)} | divergence | results_of(scored, fixed["ood_groups"] or {}, seed=seed)
        write_json(run_dir / RESULTS_FILE, results)
        remove_checkpoints(run_dir)
        log.info("run folder: %s", run_dir)
    trainer.strategy.barrier("scored")
    if trainer.is_global_zero and (key := job_key()) is not None:
        for note in Path(fixed["output_folder"]).glob(f".{key.rpartition('-')[0]}-*"):  # of earlier starts as well
            note.unlink()
    return results


def build_data(fixed: Mapping[str, Any], own_only: bool = False) -> OODDataModule:
    """The data module of a resolved `fixed`; nothing is read yet.

    Raises:
        ConfigError: a named data set has no node in ``fixed.sources``.
    """
    nodes = fixed.get("sources") or {}

    def source(name: str) -> Any:
        if name not in nodes:
            raise ConfigError(f"fixed.sources.{name}: the data set '{name}' is named but not described")
        return build(nodes[name], own_only=own_only)

    ood_dataset = fixed.get("ood_dataset")
    return OODDataModule(
        id_source=source(fixed["dataset"]),
        transform=build(fixed["transform"], own_only=own_only),
        data_shape=tuple(fixed["data_shape"]),
        num_classes=fixed["num_classes"],
        batch_size=fixed["batch_size"],
        eval_batch_size=fixed["eval_batch_size"],
        ood_source=source(ood_dataset) if ood_dataset else None,
        val_ood_sources={name: source(name) for name in as_names(fixed.get("val_ood_datasets"))},
        test_ood_sources={name: source(name) for name in as_names(fixed.get("test_ood_datasets"))},
        seed=fixed["seed"],
    )


def build_method(fixed: Mapping[str, Any]) -> Method:
    """The method of a resolved `fixed`, with the weights of ``init_from`` if given.

    Raises:
        ConfigError: it needs outliers that are not given, or the given runs do not fit.
    """
    method = build(fixed["model_config"])
    if not isinstance(method, Method):
        raise ConfigError(f"model_config._target_: {fixed['model_config']['_target_']} is no method")
    if method.needs_ood and not fixed.get("ood_dataset"):
        raise ConfigError(
            f"fixed.ood_dataset: {type(method).__name__} trains on outliers; name a data set,"
            f" for example fixed.ood_dataset=uniform_noise"
        )
    if method.needs_val_ood and not as_names(fixed.get("val_ood_datasets")):
        raise ConfigError(
            f"fixed.val_ood_datasets: {type(method).__name__} chooses settings by how well they tell data from"
            f" outliers; name sets that are not tested on, for example [uniform_noise], or give single values in"
            f" fixed.model_config"
        )
    finished_later = method.posthoc_split is not None or method.needs_val_ood
    if finished_later and (fixed.get("checkpoint_config") or {}).get("monitor") == "val/ood":
        raise ConfigError(
            f"fixed.checkpoint_config.monitor: {type(method).__name__} is fitted after training, so there is no"
            f" val/ood to select by while it trains; choose val/acc or val/loss"
        )
    init_from = as_names(fixed.get("init_from"))
    if init_from:
        folders = [run_folder(Path(path)) for path in init_from]
        method.init_from([checkpoints.read_weights(folder) for folder in folders])
    return method


def run_name(fixed: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-seed<seed>``, the name of the run's folder."""
    return f"{fixed['model']}-{fixed['dataset']}-seed{fixed['seed']}"


def shared_run_dir(fixed: Mapping[str, Any], begun: Path | None = None) -> Path:
    """The folder `begun`, or a new one in ``output_folder``; the same one for every rank of a run.

    Raises:
        ConfigError: it cannot be made, or the first process of a job did not make it.
    """
    inherited, key = os.environ.get(_RUN_DIR_VARIABLE), job_key()
    if key is None and inherited and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(inherited)
    parent = make_folder(Path(fixed["output_folder"]), "fixed.output_folder")
    note = parent / f".{key}"
    if key is not None and job_rank():
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


def check_trainer(node: Mapping[str, Any]) -> torch.device:
    """Ask Lightning and the device whether they can do what the trainer's node wants, before anything is made.

    Returns:
        The device of this process.

    Raises:
        ConfigError: no such device, a combination that Lightning refuses, or bf16 on a GPU that has none.
    """
    trainer = build(node, logger=False, enable_checkpointing=False)
    if trainer.strategy.root_device.type == "mps":
        raise ConfigError(
            "trainer_config.accelerator: Apple's GPUs have no float64, which scores and fits need; choose trainer=cpu"
        )
    wants_bf16 = str(node.get("precision", "")).startswith("bf16")
    if wants_bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer_config.precision: this GPU has no bf16; choose trainer=gpu (32-bit)")
    return trainer.strategy.root_device


def train(
    fixed: Mapping[str, Any],
    method: Method,
    data: OODDataModule,
    run_dir: Path,
    resumption: Resumption | None = None,
) -> tuple[pl.Trainer, Method, dict[str, Any]]:
    """Train, and put back the best weights; where the loss diverges, do as ``on_divergence`` says.

    With `resumption`, goes on from the last checkpoint below `run_dir`, if any.

    Returns:
        The trainer and the method, another one after a restart, and what the results tell of a divergence, if any.

    Raises:
        TrainingError: the loss diverged, and with restarts did so every time.
        Preempted: with `resumption`, the process was told to end.
    """
    divergence: dict[str, Any] = {}
    begun = max((n for n in range(1, MAX_RESTARTS + 1) if (run_dir / f"restart{n}").is_dir()), default=0)
    for restarts in count(begun if resumption is not None else 0):
        if restarts:
            seed = restart_seed(fixed, restarts)
            pl.seed_everything(seed, workers=True, verbose=False)
            method, data.seed = build_method(fixed), seed
            divergence = {"divergence": {"restarts": restarts, "seed": seed}}
        watch = FiniteLoss(keep_weights=fixed["on_divergence"] == "keep")
        folder = run_dir / f"restart{restarts}" if restarts else run_dir
        resume = Resume(folder, resumption, watch) if resumption is not None else None
        trainer = build_trainer(fixed, method, folder, watch, resume)
        prefit(method, data, Path(fixed["output_folder"]), trainer.strategy.root_device)
        try:
            fit(trainer, method, data, folder, resume)
        except TrainingError as error:
            if watch.finding is None or fixed["on_divergence"] == "stop":
                raise
            tell = log.warning if trainer.is_global_zero else log.debug
            if fixed["on_divergence"] == "keep":
                kept = keep_weights(trainer, method, watch)
                tell("%s; kept are %s", watch.finding, kept)
                return trainer, method, {"divergence": {"found": watch.finding, "kept": kept}}
            if restarts == MAX_RESTARTS:
                raise TrainingError(f"{MAX_RESTARTS} restarts did not help: {error}") from error
            seed = restart_seed(fixed, restarts + 1)
            tell("%s; restart %d of %d, with seed %d", watch.finding, restarts + 1, MAX_RESTARTS, seed)
        else:
            break
    restore_best(trainer, method)
    return trainer, method, divergence


def restart_seed(fixed: Mapping[str, Any], number: int) -> int:
    """What the `number`-th restart begins with."""
    return int(np.random.SeedSequence([fixed["seed"], number]).generate_state(1)[0])


def fit(trainer: pl.Trainer, method: Method, data: OODDataModule, folder: Path, resume: Resume | None) -> None:
    """Train, from the last checkpoint of `folder` on if it is to be resumed and has one."""
    path = last_checkpoint(folder) if resume is not None else None
    if resume is None or path is None:
        with cheap_gpu_count():
            trainer.fit(method, datamodule=data)
        return
    log.info("resumed from %s", path)
    if trainer.is_global_zero:
        set_aside_logs(folder)
    with warnings.catch_warnings(), cheap_gpu_count():
        # That there are files of the same run in it is the point.
        warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty")
        trainer.fit(method, datamodule=data, ckpt_path=path)
    resume.put_back(method)


@contextmanager
def cheap_gpu_count() -> Iterator[None]:
    """Let CUDA itself say inside whether there is a GPU, which Adam asks in every step.

    Lightning has NVIDIA's management library asked, which is opened anew for every answer, so that processes can still
    be forked afterwards. The processes of a run have their devices by now and fork no others.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def keep_weights(trainer: pl.Trainer, method: Method, watch: FiniteLoss) -> str:
    """Put back weights from before a divergence; returns which."""
    step = watch.restore(method)
    # A checkpoint may have been written between the step that broke the weights and the first loss that showed it.
    if restore_best(trainer, method):
        if all(bool(weight.isfinite().all()) for weight in method.parameters()):
            return "the best monitored weights"
        watch.restore(method)
    return f"the weights of step {step}"


def build_trainer(
    fixed: Mapping[str, Any], method: Method, run_dir: Path, watch: FiniteLoss, resume: Resume | None = None
) -> pl.Trainer:
    """The trainer, watched by `watch`, logging into `run_dir`; `resume` sees what all others have done."""
    callbacks: list[pl.Callback] = [watch]
    if fixed["trainer_config"].get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    # A method that is fitted after training has no scores to validate before.
    if fixed["val_ood_datasets"] and method.posthoc_split is None and not method.needs_val_ood:
        callbacks.append(OODValidation())
    if fixed["logger"] and (method.learns_density or method.can_sample):
        callbacks.append(Pictures())
    if fixed["earlystop_config"]:
        callbacks.append(build(fixed["earlystop_config"]))
    if fixed["averaging_config"]:
        callbacks.append(build(fixed["averaging_config"]))
    if fixed["checkpoint_config"]:
        callbacks.append(build(fixed["checkpoint_config"], dirpath=str(run_dir / "checkpoints")))
    if resume is not None:
        callbacks.append(resume)
    make_logger = build(fixed["logger"]) if fixed["logger"] else None
    return build(
        fixed["trainer_config"],
        callbacks=callbacks,
        logger=make_logger(save_dir=str(run_dir)) if make_logger else False,
        default_root_dir=str(run_dir),
        enable_checkpointing=bool(fixed["checkpoint_config"]) or resume is not None,
    )


def restore_best(trainer: pl.Trainer, method: Method) -> bool:
    """Put back the best weights of a trainer that kept them by a monitored value; else leave the last ones.

    Returns:
        Whether there were any.
    """
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if not (getattr(callback, "monitor", None) and best):
        return False
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    method.load_state_dict(state, strict=True)
    return True


def fit_posthoc(trainer: pl.Trainer, method: Method, data: OODDataModule) -> None:
    """Fit what is fitted after training, every rank on its share of the split, without shuffling or augmentation.

    What is chosen on outliers then is chosen by every rank on the whole of the validation sets.
    """
    device = trainer.strategy.root_device
    method.to(device)
    take_buffers_of_the_first(trainer, method)
    if method.posthoc_split is not None:
        loader = data.plain_loader(
            method.posthoc_split, device=device, rank=trainer.global_rank, world_size=trainer.world_size
        )
        method.fit_posthoc(loader)
    if method.needs_val_ood:
        method.tune(data.plain_loader("val", device=device), data.ood_loaders("val", device=device))


def take_buffers_of_the_first(trainer: pl.Trainer, method: Method) -> None:
    """Give every process the first one's statistics of batches: after the last step of DDP they differ."""
    if trainer.world_size > 1:
        own = set(getattr(method, "_ddp_params_and_buffers_to_ignore", ()))
        for name, buffer in method.named_buffers():
            if name not in own:
                distributed.broadcast(buffer, src=0)
