"""What energy-based models share: a network's logits read as an unnormalised density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.models.base import Batch, Method, Prediction
from uncertainty_est.networks.base import Network


class EnergyModel(Method):
    r"""Base of energy-based models: :math:`F(x) = \mathrm{lse}_c f_c(x) = \ln p(x) + \ln Z`, energy :math:`E = -F`.

    With C > 1 logits the same network is a classifier, :math:`p(y \mid x) = \mathrm{softmax} f(x)`; with a single
    logit :math:`F = f` and there are no classes.

    Scores: ``p(x)`` (F, the headline) and, of a classifier, ``max p(y|x)``, ``Entropy`` and ``Max logit``.

    A subclass trains the density in :meth:`loss`. Its validation loss is the class loss, or without classes
    :math:`-\operatorname{mean} F`, which knows nothing of Z: such runs keep their last weights.

    References:
        Grathwohl et al., arXiv:1912.03263, Eq. 5 to 7.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation, in the network's
            input space.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative number.
    """

    learns_density = True

    def __init__(
        self,
        network: Network,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if input_noise < 0 or warmup_steps < 0:
            raise ValueError(f"input_noise and warmup_steps must be at least 0, got {input_noise} and {warmup_steps}")
        self.network = network
        self.input_noise = input_noise
        self.warmup_steps = warmup_steps

    @property
    def has_classes(self) -> bool:
        """Whether the network is a classifier as well."""
        return self.network.head.out_features > 1

    @property
    def classifier(self) -> Network | None:
        return self.network if self.has_classes else None

    def logits(self, x: Tensor) -> Tensor:
        """``f(x)``, ``[B, C]`` float32, of ``x: [B, *data_shape]``."""
        return self.network(x).float()

    def log_density(self, x: Tensor) -> Tensor:
        """Unnormalised log-density ``F(x)``, ``[B]`` float32, of ``x: [B, *data_shape]``."""
        return self.logits(x).logsumexp(-1)

    def noisy(self, x: Tensor) -> Tensor:
        """`x` with the noise of training."""
        return x + self.input_noise * torch.randn_like(x) if self.input_noise else x

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Parts of the loss that make the network a classifier; only called where it has classes."""
        return {"ce": F.cross_entropy(logits, y)}

    def probs_from(self, logits: Tensor) -> Tensor | None:
        """Class probabilities ``[B, C]``, or ``None`` without classes."""
        return logits.softmax(-1) if self.has_classes else None

    def predict_from(self, logits: Tensor) -> Prediction:
        """Probabilities and scores of ``logits: [B, C]``."""
        scores = measures.logit_scores(logits)
        density = {"p(x)": scores.pop("p(x)")}
        return Prediction(self.probs_from(logits), density | scores if self.has_classes else density)

    def _predict(self, x: Tensor) -> Prediction:
        return self.predict_from(self.logits(x))

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        logits = self.logits(self.noisy(x))
        density = logits.logsumexp(-1).mean()
        self.note({"log_density": density})
        return self.class_loss(logits, y) if self.has_classes else {"density": -density}, self.probs_from(logits)

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        if not self.warmup_steps:
            return configured
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        schedulers = [{"scheduler": warm_up(optimizer, self.warmup_steps), "interval": "step"}]
        if isinstance(configured, dict):
            schedulers.append({"scheduler": configured["lr_scheduler"], "interval": "epoch"})
        return [optimizer], schedulers


def warm_up(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate times min(1, (s + 1) / steps) in step s; multiplies, so that it goes with any other scheduler."""
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)


def cool_down(optimizer: torch.optim.Optimizer, first: int, last: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate along half a cosine, from itself in step `first` to a hundredth in step `last`; multiplies."""

    def factor(step: int) -> float:
        done = min(max((step - first) / max(last - first, 1), 0), 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: factor(step) / factor(step - 1))
