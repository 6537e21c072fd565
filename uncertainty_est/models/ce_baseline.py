"""A cross-entropy classifier, scored by its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.models.base import Batch, Method, Prediction
from uncertainty_est.networks.base import Network, features_and_logits


class CEBaseline(Method):
    r"""Softmax classifier trained with :math:`\mathrm{lse} f(x) - f_y(x)`, with scores from its logits ``f(x)``.

    Scores: ``max p(y|x)`` (maximum softmax probability, the headline), ``p(x)`` (negative free energy
    ``lse f``), ``Entropy`` and ``Max logit``.

    Every method that post-processes a classifier is a subclass: it reads the same :meth:`outputs`.

    References:
        Hendrycks and Gimpel, arXiv:1610.02136. Energy score: Liu et al., arXiv:2010.03759, Eq. 4.

    Args:
        network: logits and features of ``[B, *data_shape]``.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.network = network

    @property
    def classifier(self) -> Network:
        return self.network

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """The network's one pass over ``x: [B, *data_shape]``: ``features [B, D]`` and ``logits [B, C]``, float32."""
        return dict(zip(("features", "logits"), features_and_logits(self.network, x), strict=True))

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        """Probabilities and scores by arithmetic over :meth:`outputs`, with no further pass."""
        logits = outputs["logits"]
        return Prediction(logits.softmax(-1), measures.logit_scores(logits))

    def _predict(self, x: Tensor) -> Prediction:
        return self.predict_from(self.outputs(x))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, y = batch["id"]
        return {"ce": F.cross_entropy(self.network(x), y)}

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        logits = self.network(x).float()
        return {"ce": F.cross_entropy(logits, y)}, logits.softmax(-1)
