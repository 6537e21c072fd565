"""What methods share that model the density of the inputs themselves."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.base import Batch, Method, Prediction

_SCORE = "p(x)"


class DensityMethod(Method):
    r"""Base of explicit density models: one density of all data, or one for each class.

    A subclass gives :meth:`log_prob`. With one density the loss is :math:`-\operatorname{mean} \ln p(x)`. With C
    densities :math:`p(x \mid c)` it is the cross-entropy of :math:`p(c \mid x) \propto p(x \mid c)`, or, unless
    `discriminative`, :math:`-\operatorname{mean} \ln p(x \mid y)`; then
    :math:`p(x) = \tfrac1C \sum_c p(x \mid c)`, and there are class probabilities.

    Score: ``p(x)``, :math:`\ln p(x)` in nats. The tables also tell the mean ``Bits per dim`` of every set
    of images (:math:`-\ln p(x) / (D \ln 2)`), ``NLL of x`` of tables, in nats.

    Args:
        data_shape: shape of one input.
        num_classes: 1 for one density of all data, C for one for each class.
        discriminative: the loss with C densities.

    Raises:
        ValueError: `num_classes` below 1.
    """

    learns_density = True

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 1,
        discriminative: bool = True,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.data_shape = tuple(int(n) for n in data_shape)
        self.num_classes = num_classes
        self.discriminative = discriminative

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``[B, num_classes]`` of ``x: [B, *data_shape]`` float32, in nats; called without autocast."""

    def _predict(self, x: Tensor) -> Prediction:
        log_p = self._exact_log_prob(x)
        return Prediction(self._probs(log_p), {_SCORE: self._marginal(log_p)})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.validate_batch(batch)[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        log_p = self._exact_log_prob(x)
        if self._is_image:
            self.note({"bits_per_dim": self._bits_per_dim(self._marginal(log_p).mean())})
        if self.num_classes == 1:
            part = {"nll": -log_p.mean()}
        elif self.discriminative:
            part = {"ce": F.cross_entropy(log_p, y)}
        else:
            part = {"nll": F.nll_loss(log_p, y)}
        return part, self._probs(log_p)

    def quantities(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        log_p = scores[_SCORE]
        return {"Bits per dim": self._bits_per_dim(log_p)} if self._is_image else {"NLL of x": -log_p}

    @property
    def _is_image(self) -> bool:
        return len(self.data_shape) == 3

    def _bits_per_dim(self, log_p: Any) -> Any:
        return -log_p / (math.prod(self.data_shape) * math.log(2))

    def _exact_log_prob(self, x: Tensor) -> Tensor:
        # Sums of thousands of log-determinants: half precision would leave no digits.
        with torch.autocast(x.device.type, enabled=False):
            return self.log_prob(x.float())

    def _marginal(self, log_p: Tensor) -> Tensor:
        return log_p.logsumexp(-1) - math.log(self.num_classes)

    def _probs(self, log_p: Tensor) -> Tensor | None:
        return log_p.softmax(-1) if self.num_classes > 1 else None
