"""CEDA: a classifier that learns to be uncertain on noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.outlier import CONFIDENCE_LOSSES
from uncertainty_est.models.base import Batch
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network


class CEDA(CEBaseline):
    r"""Confidence enhancing data augmentation: low confidence on outliers z, ``fixed.ood_dataset``.

    .. math:: L = \operatorname{mean} [\mathrm{lse} f(x) - f_y(x)] + \lambda \operatorname{mean}_z \ell(z), \quad
        \ell(z) = \max_c \ln p(c \mid z) \ \text{or} \ -\tfrac1C \sum_c \ln p(c \mid z)

    Scores are the softmax baseline's, ``max p(y|x)`` first.

    References:
        Hein et al., arXiv:1812.05720, Section 4. With the mean over classes: Meinke and Hein, arXiv:1909.12180.

    Args:
        network: logits and features of ``[B, *data_shape]``.
        ood_weight: :math:`\lambda`.
        kind: ``"max"`` or ``"uniform"``, the first or the second :math:`\ell`.

    Raises:
        ValueError: another kind, or a negative weight.
    """

    needs_ood = True

    def __init__(
        self,
        network: Network,
        ood_weight: float = 1.0,
        kind: str = "max",
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if kind not in CONFIDENCE_LOSSES:
            raise ValueError(f"kind must be one of {', '.join(map(repr, CONFIDENCE_LOSSES))}, got '{kind}'")
        if ood_weight < 0:
            raise ValueError(f"ood_weight must be at least 0, got {ood_weight}")
        self.ood_weight = ood_weight
        self.kind = kind

    def outliers(self, z: Tensor) -> Tensor:
        """What the confidence is lowered on, given outliers ``z: [B, *data_shape]``: themselves."""
        return z

    def training_weight(self) -> float:
        r""":math:`\lambda` in the current epoch of training; validation always has ``ood_weight``."""
        return self.ood_weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self._losses(batch, self.training_weight())[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        parts, logits = self._losses(batch, self.ood_weight)
        return parts, logits.softmax(-1)

    def _losses(self, batch: Batch, weight: float) -> tuple[dict[str, Tensor], Tensor]:
        x, y = batch["id"]
        # Data and outliers in one pass, so that batch normalisation sees both.
        logits = self.network(torch.cat([x, self.outliers(batch["ood"][0])])).float()
        known, unknown = logits[: len(x)], logits[len(x) :]
        self.note({"confidence/ood": unknown.softmax(-1).amax(-1).mean()})
        confidence = CONFIDENCE_LOSSES[self.kind](unknown).mean()
        return {"ce": F.cross_entropy(known, y), "confidence": weight * confidence}, known
