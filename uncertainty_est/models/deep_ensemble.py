"""Deep ensemble: independently initialised classifiers whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch, Prediction, State, load_network
from uncertainty_est.models.ensemble import Ensemble
from uncertainty_est.networks.base import Network


class DeepEnsemble(Ensemble):
    r"""M cross-entropy classifiers; :math:`\bar p = \tfrac1M \sum_m p_m` (probabilities are averaged, not logits).

    Scores: ``MI`` (negative mutual information :math:`H[\bar p] - \tfrac1M\sum_m H[p_m]`, the headline),
    ``Entropy`` (negative :math:`H[\bar p]`), ``Variance`` (negative, mean over classes) and ``max p(y|x)``.

    Trained jointly, the members differ by initialisation and share the order of the data; members that were trained
    each with its own seed are assembled by ``fixed.init_from=[run0,run1,…] fixed.trainer_config.max_epochs=0``.

    References:
        Lakshminarayanan et al., arXiv:1612.01474 (without adversarial training).

    Args:
        network: builds one member; called `num_members` times, so every member has its own initialisation.
        num_members: M, at least 2.

    Raises:
        ValueError: fewer than 2 members.
    """

    def __init__(
        self,
        network: Callable[[], Network],
        num_members: int = 5,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        if num_members < 2:
            raise ValueError(f"num_members must be at least 2, got {num_members}")
        super().__init__((network() for _ in range(num_members)), optimizer, scheduler)

    def init_from(self, states: list[State]) -> None:
        """Member k takes the network of run k.

        Raises:
            ConfigError: not one run a member, or a network that does not fit.
        """
        if len(states) != len(self.members):
            raise ConfigError(
                f"fixed.init_from: {len(states)} runs for {len(self.members)} members;"
                f" give as many runs as fixed.model_config.num_members"
            )
        for k, state in enumerate(states):
            load_network(self, state, prefix="network.", into=f"members.{k}")

    def _predict(self, x: Tensor) -> Prediction:
        probs = self.member_logits(x).softmax(-1)
        return Prediction(probs.mean(0), measures.member_scores(probs))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, y = batch["id"]
        return self._ce(self.member_logits(x), y)

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        logits = self.member_logits(x)
        return self._ce(logits, y), logits.softmax(-1).mean(0)

    @staticmethod
    def _ce(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        # The sum over members gives every member the gradient that it would have alone.
        members, classes = logits.shape[0], logits.shape[-1]
        ce = F.cross_entropy(logits.reshape(-1, classes), y.repeat(members))
        return {"ce": ce * members}
