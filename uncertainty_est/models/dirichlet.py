"""What methods share whose network puts out a Dirichlet distribution over class probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.models.base import Batch, Method, Prediction
from uncertainty_est.networks.base import Network


class DirichletNetwork(Method):
    r"""Base of methods that read logits f(x) as concentrations :math:`\alpha(x)`; :math:`\bar p = \alpha / \alpha_0`.

    A subclass gives :meth:`concentrations`, :meth:`loss_from` and the score that stands first.

    Args:
        network: logits of ``[B, *data_shape]``.
    """

    headline: ClassVar[str]

    def __init__(
        self,
        network: Network,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.network = network

    @property
    def classifier(self) -> Network | None:
        return self.network

    @abstractmethod
    def concentrations(self, logits: Tensor) -> Tensor:
        """Concentrations ``[B, C]`` float64, positive and finite, of ``logits: [B, C]`` float64 of at most 88."""

    @abstractmethod
    def loss_from(self, alpha: Tensor, y: Tensor, alpha_ood: Tensor | None) -> dict[str, Tensor]:
        """:meth:`loss` from concentrations of data ``[B, C]`` with labels ``y: [B]``, and of outliers if any."""

    def alpha(self, x: Tensor) -> Tensor:
        """Concentrations ``[B, C]`` float64 of ``x: [B, *data_shape]``."""
        return self.concentrations(self.network(x).double().clamp(max=measures.LARGEST_LOG_ALPHA))

    def _predict(self, x: Tensor) -> Prediction:
        return self.predict_from(self.alpha(x))

    def predict_from(self, alpha: Tensor) -> Prediction:
        """Mean probabilities and scores of concentrations ``[B, C]``."""
        probs = alpha / alpha.sum(-1, keepdim=True)
        return Prediction(probs.float(), measures.dirichlet_scores(alpha, self.headline))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.validate_batch(batch)[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        x, y = batch["id"]
        # Data and outliers in one pass, so that batch normalisation sees both.
        inputs = torch.cat([x, batch["ood"][0]]) if "ood" in batch else x
        alpha = self.alpha(inputs)
        known, unknown = alpha[: len(x)], alpha[len(x) :] if "ood" in batch else None
        parts = {name: part.float() for name, part in self.loss_from(known, y, unknown).items()}
        return parts, (known / known.sum(-1, keepdim=True)).float()
