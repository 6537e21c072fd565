"""What ensembles have in common: their members, and the average of what these say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est.models.base import Method
from uncertainty_est.networks.base import Network


class Ensemble(Method):
    r"""M classifiers in one method; :math:`\bar p = \tfrac1M \sum_m p_m` (probabilities are averaged, not logits).

    Args:
        members: the M networks.
    """

    def __init__(
        self,
        members: Iterable[Network],
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.members = nn.ModuleList(members)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits ``[M, B, C]`` of ``x: [B, *data_shape]``, float32."""
        return torch.stack([member(x).float() for member in self.members])
