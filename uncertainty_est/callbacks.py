"""What happens beside the loss while a method trains."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import TrainingError
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.models.base import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class FiniteLoss(pl.Callback):
    """Ends training, with one sentence, when the loss is no longer a number or has left all bounds.

    Losses stay on the device and are looked at every `every_n_steps` steps and before anything is made of the
    weights (validation, checkpoints), so that the host does not wait for the device at every step. Under DDP all
    processes decide alike.

    Args:
        every_n_steps: steps between two looks.
        limit: largest magnitude of a loss.
        keep_weights: remember weights from before the divergence for :meth:`restore`: two copies of all state.
    """

    def __init__(self, every_n_steps: int = 25, limit: float = 1e8, keep_weights: bool = False) -> None:
        self.every_n_steps = every_n_steps
        self.limit = limit
        self.keep_weights = keep_weights
        self.finding: str | None = None
        """What was found, where the loss diverged."""
        self._losses: list[Tensor] = []  # since the last look
        self._steps = 0
        # Losses after the older copy were finite; whether those after the newer one are is not known yet.
        self._copies: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._copy(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Global steps count those of every optimiser, where a method has several.
        self._steps += 1
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._losses.append(loss.detach())
        if (batch_idx + 1) % self.every_n_steps == 0:
            self.check(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]

    def restore(self, method: Method) -> int:
        """Put back the state of the last look but one, after which losses were still finite; returns its step.

        Where that was before the first look, it is the state that training began with.
        """
        step, state = self._copies[0]
        method.load_state_dict(state, strict=True)
        return step

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the losses since the last look.

        Raises:
            TrainingError: one of them is no number, or too large.
        """
        if not self._losses:
            return
        worst = torch.stack(self._losses).abs().amax()  # a maximum with NaN is NaN
        self._losses.clear()
        if trainer.strategy.reduce_boolean_decision(not bool(worst <= self.limit), all=False):
            self.finding = (
                f"the training loss became NaN or infinite, or exceeded {self.limit:.0e}, by step {self._steps}"
                f" (epoch {trainer.current_epoch})"
            )
            raise TrainingError(
                f"{self.finding}; lower fixed.model_config.optimizer.lr, set fixed.trainer_config.gradient_clip_val or"
                f" fixed.on_divergence, what was logged and saved so far is kept"
            )
        self._copy(pl_module)

    def _copy(self, pl_module: pl.LightningModule) -> None:
        if self.keep_weights:
            state = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            self._copies = [*self._copies[-1:], (self._steps, state)]


class ProgressBar(RichProgressBar):
    """Lightning's bar, looked at four times a second: small networks take a thousand steps in that time.

    Only then does it wait for the device's loss. Lightning's own is drawn up to a hundred times a second and asks for
    its numbers in every step, which costs a small network a tenth of its time.
    """

    _PER_SECOND = 4

    def __init__(self) -> None:
        super().__init__(refresh_rate=self._PER_SECOND)
        self._loss: float | None = None
        self._looked = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._looked < 1 / self._PER_SECOND and batch_idx + 1 < trainer.num_training_batches:
            return
        self._looked = now
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = None if loss is None else float(loss)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return ({} if self._loss is None else {"train/loss": self._loss}) | super().get_metrics(trainer, pl_module)


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


class Pictures(pl.Callback):
    """Draws into the logger what a method has learned so far: a density over the plane of two features, and samples.

    After the 1st, 2nd, 4th, 8th, … validation and when training ends, as ``density`` and ``samples``; on the first
    process only. Loggers that take no pictures get none. Training goes on as it would without.
    """

    def __init__(self) -> None:
        self._validations = 0
        self._drawn_at = -1  # step: training may end with the validation that was drawn

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations, self._drawn_at = state_dict["validations"], state_dict["drawn_at"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations & (self._validations - 1) == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(method, Method) and isinstance(data, OODDataModule)
        if not (trainer.is_global_zero and trainer.loggers) or trainer.global_step == self._drawn_at:
            return
        self._drawn_at = trainer.global_step
        # Runs that draw nothing need not wait for the import of Matplotlib.
        from uncertainty_est.evaluation.plane import score_plane
        from uncertainty_est.evaluation.samples import sample_figure

        title = f"step {trainer.global_step}"
        if method.learns_density and data.data_shape == (2,):
            _log_figure(trainer, "density", score_plane(method, data, title))
        samples = sample_figure(method, data, title) if method.can_sample else None
        if samples is not None:
            _log_figure(trainer, "samples", samples)


def _log_figure(trainer: pl.Trainer, key: str, figure: Figure) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, trainer.global_step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, images=[figure], step=trainer.global_step)
