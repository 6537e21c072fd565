"""Train a method, as often as it takes, and fit what is fitted afterwards."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch._dynamo.exc import BackendCompilerFailed

from uncertainty_est.building import build_method
from uncertainty_est.callbacks import FiniteLoss, OODValidation, Pictures, ProgressBar
from uncertainty_est.config import build
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import ConfigError, TrainingError, first_line
from uncertainty_est.models.base import Method
from uncertainty_est.networks.base import Network
from uncertainty_est.prefit import prefit
from uncertainty_est.resume import (
    Resume,
    Resumption,
    last_checkpoint,
    set_aside_logs,
)

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


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
            with accelerated(method, compiled=fixed["compile"], channels_last=fixed["channels_last"]):
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


@contextmanager
def accelerated(method: Method, *, compiled: bool, channels_last: bool) -> Iterator[None]:
    """Networks as compiled kernels, and weights of convolutions with their channels innermost, inside.

    Names and values of weights are the same, and so is everything after it.

    Raises:
        ConfigError: torch cannot compile here, or not for a loss that is made of derivatives.
    """
    networks = [module for module in method.modules() if isinstance(module, Network)] if compiled else []
    for network in networks:
        network.compile()
    # Of convolutions alone: other modules may hold images of another rank, which have no such order.
    convolutions = [m for m in method.modules() if isinstance(m, _CONVOLUTIONS)] if channels_last else []
    for convolution in convolutions:
        convolution.to(memory_format=torch.channels_last)
    try:
        yield
    except BackendCompilerFailed as error:
        raise ConfigError(
            f"fixed.compile: torch cannot compile here ({first_line(error, 160)}); install a C++ compiler, or leave it"
            " off"
        ) from error
    except RuntimeError as error:
        if not (networks and any(words in str(error) for words in ("double backward", "donated buffer"))):
            raise
        raise ConfigError(
            f"fixed.compile: {type(method).__name__} trains on derivatives in the input, which compiled networks do not"
            f" give; leave it off"
        ) from error
    finally:
        for network in networks:
            network._compiled_call_impl = None
        for convolution in convolutions:
            convolution.to(memory_format=torch.contiguous_format)


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
