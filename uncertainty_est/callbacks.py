"""What happens beside the loss while a method trains."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import TrainingError
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.models.base import Method

log = logging.getLogger(__name__)


class FiniteLoss(pl.Callback):
    """Ends the run, with one sentence, when the training loss is no longer a number.

    The losses are added up on the device and looked at every `every_n_steps` steps and at the end of an epoch, so
    that the host does not wait for the device at every step.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        self.every_n_steps = every_n_steps
        self._sum: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach() if isinstance(outputs, dict) else outputs
        if loss is None:  # manual optimisation reports no loss
            return
        self._sum = loss if self._sum is None else self._sum + loss
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        total, self._sum = self._sum, None
        if total is not None and not bool(torch.isfinite(total)):
            raise TrainingError(
                f"the training loss became NaN or infinite by step {trainer.global_step} (epoch"
                f" {trainer.current_epoch}); lower fixed.model_config.optimizer.lr or set"
                f" fixed.trainer_config.gradient_clip_val, what was logged and saved so far is kept"
            )


class OODValidation(pl.Callback):
    """Logs ``val/ood``: the headline score's AUROC (percent), averaged over the validation OOD sets.

    A table whose checkpoints were selected by ``val/ood`` has seen OOD data of the validation sets' kind.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, Method) and isinstance(data, OODDataModule)
        device = pl_module.device
        known = score_loader(pl_module, data.plain_loader("val", device=device))
        headline = next(iter(known.scores))
        values = []
        for loader in data.ood_loaders("val", device=device).values():
            unknown = score_loader(pl_module, loader)
            values.append(ood_metrics(known.scores[headline], unknown.scores[headline])["AUROC"])
        # Every rank scores the whole of these sets: the mean over ranks is each one's own value.
        pl_module.log("val/ood", 100 * sum(values) / len(values), prog_bar=True, sync_dist=True)
