"""The contract of every method: one pass over a batch gives class probabilities and named scores."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from uncertainty_est import measures
from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.base import Network

# A training batch: "id" always, "ood" where the method trains on outliers.
Batch = Mapping[str, tuple[Tensor, Tensor]]
State = Mapping[str, Tensor]


@dataclass
class Prediction:
    """What a method says of a batch.

    Attributes:
        probs: ``[B, C]`` class probabilities, rows sum to 1; ``None`` for a method without classes.
        scores: name to ``[B]``, finite float32, HIGHER = MORE IN-DISTRIBUTION; the first is the headline.
    """

    probs: Tensor | None
    scores: dict[str, Tensor]


def finished(prediction: Prediction) -> Prediction:
    """As methods hand it out: scores in float32, those that are not finite replaced."""
    return Prediction(prediction.probs, measures.finite({name: s.float() for name, s in prediction.scores.items()}))


@contextmanager
def scoring_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every submodule's mode and the grad mode as they were afterwards.

    ``no_grad`` and not ``inference_mode``: scores that need input gradients re-enable them locally.
    """
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


class Method(pl.LightningModule, ABC):
    """Base of all methods.

    A method implements :meth:`loss` and :meth:`_predict`; one that is fitted after training also sets
    ``posthoc_split`` and implements :meth:`fit_posthoc`. One that trains on from densities that are fitted first names
    them in ``prefitted`` and implements :meth:`fit_before` and :meth:`prefit_settings`. One that, last of all,
    chooses settings by how well they tell data from outliers sets ``needs_val_ood`` and implements :meth:`tune`.

    Args:
        optimizer: called with the parameters (a ``_partial_`` node of the configuration). Only training needs it.
        scheduler: called with the optimizer; stepped once an epoch.
    """

    needs_ood: ClassVar[bool] = False
    """Trains on ``batch["ood"]``, so that ``fixed.ood_dataset`` must be given."""
    posthoc_split: Literal["train", "val"] | None = None
    """The split that :meth:`fit_posthoc` reads after training, if any."""
    needs_val_ood: bool = False
    """Chooses settings in :meth:`tune`, so that ``fixed.val_ood_datasets`` must be given."""
    progress: ClassVar[tuple[str, ...]] = ()
    """Attributes with plain values that training counts in, beside weights and buffers."""
    prefitted: tuple[str, ...] = ()
    """Submodules that :meth:`fit_before` fits, each a :class:`~uncertainty_est.densities.fitted.Fitted`."""
    can_sample: bool = False
    """Is a generative model that :meth:`sample` draws from."""
    learns_density: ClassVar[bool] = False
    """Learns a density, normalised or not, that is worth looking at while it is learned."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._notes: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------ what a method implements

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar parts of the training loss; their sum is minimised, each is logged as ``train/<name>``."""

    @abstractmethod
    def _predict(self, x: Tensor) -> Prediction:
        """:meth:`predict` for ``x: [B, *data_shape]``, already in eval mode and without gradients."""

    def fit_posthoc(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:  # noqa: B027 (a hook, not abstract)
        """Fit what is fitted after training, into registered buffers, from ``posthoc_split`` without augmentation.

        Args:
            loader: yields ``(x [B, *data_shape], y [B])``; under DDP, this rank's share only.
        """

    def fit_before(  # noqa: B027 (a hook, not abstract)
        self,
        id_loader: Iterable[tuple[Tensor, Tensor]],
        ood_loader: Iterable[tuple[Tensor, Tensor]] | None,
    ) -> None:
        """Fit the submodules named in :attr:`prefitted` before training, on its device and by draws of one's own only.

        The result is kept in a file for later runs on the same data with the same :meth:`prefit_settings`.

        Args:
            id_loader: yields ``(x [B, *data_shape], y [B])`` of the training split, all of it on every process, in
                order and without augmentation.
            ood_loader: likewise of the outliers' training split; ``None`` without outliers.
        """

    def prefit_settings(self) -> dict[str, Any]:
        """What decides the outcome of :meth:`fit_before` beside the data: plain values by name."""
        return {}

    def tune(  # noqa: B027 (a hook, not abstract)
        self, loader: Iterable[tuple[Tensor, Tensor]], ood_loaders: Mapping[str, Iterable[tuple[Tensor, Tensor]]]
    ) -> None:
        """Choose settings after training and :meth:`fit_posthoc`, into registered buffers; where :attr:`needs_val_ood`.

        Args:
            loader: ``(x [B, *data_shape], y [B])`` of the in-distribution validation split, without augmentation.
            ood_loaders: the same of every set of ``fixed.val_ood_datasets``, by name. Under DDP every rank gets the
                whole of all sets, so that all choose the same.
        """

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``[n, *data_shape]`` in the network's input space; only where :attr:`can_sample`.

        Args:
            n: how many.
            generator: on the method's device; draws come from it alone.
        """
        raise NotImplementedError(f"{type(self).__name__} is no generative model")

    def quantities(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What else the tables should tell of a data set, from its scores ``[N]``: name to ``[N]``, shown as means.

        For quantities with a unit of their own, such as bits per dimension. None by default.
        """
        return {}

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """The loss parts and class probabilities ``[B, C]`` (if any) of a validation batch."""
        return self.loss(batch), self._predict(batch["id"][0]).probs

    def init_from(self, states: list[State]) -> None:
        """Take over the weights of finished runs; every weight offered must find a place.

        Args:
            states: one state dict a run. Buffers that this method has and the run had not (fitted post-hoc state)
                stay as they are; a weight of a network must be offered.

        Raises:
            ConfigError: the number of runs or the weights do not fit.
        """
        if len(states) != 1:
            raise ConfigError(f"fixed.init_from: {type(self).__name__} takes one run, got {len(states)}")
        load_network(self, states[0], prefix="network.")

    def note(self, values: Mapping[str, Tensor]) -> None:
        """Scalars to log beside the loss, as ``train/<name>`` or ``val/<name>``; call it while computing a loss.

        Args:
            values: name to scalar; detached here.
        """
        self._notes.update({name: value.detach() for name, value in values.items()})

    def training_state(self) -> dict[str, Any]:
        """What this process goes on from beside the saved weights: its own generators, counts and unshared state."""
        unshared = set(getattr(self, "_ddp_params_and_buffers_to_ignore", ())) if self.trainer.world_size > 1 else ()
        state = self.state_dict()
        return {
            "generators": {key: generator.get_state() for key, generator in self._generators()},
            "unshared": {name: state[name].detach().cpu().clone() for name in state if name in unshared},
            "progress": {name: copy.deepcopy(getattr(self, name)) for name in self.progress},
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`training_state` gave, after training has begun to set itself up."""
        for key, generator in self._generators():
            generator.set_state(state["generators"][key])
        own = self.state_dict()
        for name, value in state["unshared"].items():
            own[name].copy_(value)
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def _generators(self) -> Iterator[tuple[str, torch.Generator]]:
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Generator):
                    yield f"{path}.{name}", value

    def keep_from_ddp(self, submodule: str) -> None:
        """Spare the state of `submodule`, which training does not touch, from DDP's broadcast at every step."""
        names = [f"{submodule}.{name}" for name in self.get_submodule(submodule).state_dict()]
        self._ddp_params_and_buffers_to_ignore = [
            *getattr(self, "_ddp_params_and_buffers_to_ignore", []),
            *names,
        ]

    @property
    def classifier(self) -> Network | None:
        """The network whose logits are of the classes, for scores that read any classifier; ``None`` without one.

        The first pass that :meth:`predict` takes through it is of the inputs themselves.
        """
        return None

    # --------------------------------------------------------------------------------------------- reading a method

    def predict(self, x: Tensor) -> Prediction:
        """Class probabilities and all scores of ``x: [B, *data_shape]`` from one pass through the network.

        Leaves train/eval modes, the grad mode, every weight and every buffer as they were.

        Raises:
            NotFittedError: a post-hoc method before :meth:`fit_posthoc`.
        """
        with scoring_mode(self):
            return finished(self._predict(x))

    def classify(self, x: Tensor) -> Tensor | None:
        """Class probabilities ``[B, C]`` of ``x: [B, *data_shape]``, or ``None``."""
        return self.predict(x).probs

    def get_ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """Scores ``[B]`` by name of ``x: [B, *data_shape]``, higher = more in-distribution."""
        return self.predict(x).scores

    # ------------------------------------------------------------------------------------------- Lightning's hooks

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of :meth:`loss`, with every part logged."""
        total = self.noted_loss(batch)
        self.log_notes(batch, batch_idx)
        return total

    def noted_loss(self, batch: Batch) -> Tensor:
        """Sum of :meth:`loss`, with every part noted."""
        parts = self.loss(batch)
        total = functools.reduce(torch.add, parts.values())
        self.note((parts if len(parts) > 1 else {}) | {"loss": total})
        return total

    def log_notes(self, batch: Batch, batch_idx: int) -> None:
        """Log what has been noted while training, in the steps that loggers write and in those before something looks.

        These are the last one of an epoch and, where it is validated in its midst, those before that.

        Lightning would take it in every step, and drop all but these: for a small network that is a fifth of a step.
        A note that only some steps make keeps its last value.
        """
        trainer = self.trainer
        number, validates = batch_idx + 1, trainer.val_check_batch or float("inf")
        if trainer.check_val_every_n_epoch is None:  # validation goes by steps, whatever the epoch
            number = trainer.fit_loop.total_batch_idx + 1
        is_looked_at = batch_idx + 1 == trainer.num_training_batches or number % validates == 0
        if is_looked_at or trainer._logger_connector.should_update_logs:
            values = {f"train/{name}": value for name, value in self._take_notes().items()}
            self.log_dict(values, batch_size=len(batch["id"][1]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs ``val/loss`` and, for a classifier, ``val/acc``; exact means over the split, also under DDP."""
        of_training = self._take_notes()
        parts, probs = self.validate_batch(batch)
        y = batch["id"][1]
        values = {f"val/{name}": value for name, value in self._take_notes().items()}
        self._notes = of_training
        values["val/loss"] = torch.stack(list(parts.values())).sum()
        if probs is not None:
            values["val/acc"] = (probs.argmax(-1) == y).float().mean()
        self.log_dict(values, batch_size=len(y), on_epoch=True, prog_bar=True, sync_dist=True)

    def _take_notes(self) -> dict[str, Tensor]:
        notes, self._notes = self._notes, {}
        return notes

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Prediction:
        """:meth:`predict` of the inputs of ``(x, y)``."""
        return self.predict(batch[0])

    def parameter_groups(self) -> Any:
        """What the optimizer is called with: all parameters, or groups with options of their own."""
        return self.parameters()

    def configure_optimizers(self) -> Any:
        """The configured optimizer, and scheduler if any.

        Raises:
            ConfigError: no optimizer was configured.
        """
        if self._make_optimizer is None:
            raise ConfigError("fixed.model_config.optimizer: training needs an optimizer")
        optimizer = self._make_optimizer(self.parameter_groups())
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def last_step(self) -> int:
        """Number of steps that this training has, for learning rates that fall until its end.

        Raises:
            ConfigError: it has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError(
                "fixed.trainer_config.max_epochs: the learning rate falls until the last step, so there must be one;"
                " set max_epochs or max_steps"
            )
        return int(steps)


def load_network(owner: Method, state: State, prefix: str, into: str | None = None) -> None:
    """Load the weights below `prefix` of another run's state into the submodule `into` (same name if not given).

    Raises:
        ConfigError: a weight is missing, left over, or of another shape.
    """
    name = (into or prefix).rstrip(".")
    if name not in dict(owner.named_modules()):
        raise ConfigError(f"fixed.init_from: {type(owner).__name__} has no {name} to start from another run's weights")
    offered = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    left_over = [key for key in state if not key.startswith(prefix)]
    if left_over:
        raise ConfigError(
            f"fixed.init_from: {type(owner).__name__} has no place for the run's weight '{left_over[0]}'"
            f" ({len(left_over)} such); start from a run of a plain classifier, such as model=img_ce_baseline"
        )
    try:
        owner.get_submodule(name).load_state_dict(offered, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"fixed.init_from: the run's weights do not fit the network of {type(owner).__name__}; start from a run"
            f" on the same data with the same network ({detail})"
        ) from error
