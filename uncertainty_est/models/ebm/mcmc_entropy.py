"""A classifier that searches for inputs it is sure of, and unlearns to be sure of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.models.base import Batch, Prediction, scoring_mode
from uncertainty_est.models.ebm.energy import EnergyModel
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.random import rank_generator
from uncertainty_est.samplers.sgld import SGLD


class MCMCEntropy(EnergyModel):
    r"""Cross-entropy on data, and large entropy where chains find it small.

    .. math:: L = \operatorname{mean} [-\ln p(y \mid x)] - w_x \operatorname{mean} H[p(\cdot \mid x^-)]

    The chains of :math:`x^-` begin anew at every step, uniformly between `low` and `high`, and climb :math:`-H`.

    Scores: ``Entropy`` (the headline: what is trained), ``max p(y|x)``, ``p(x)`` and ``Max logit``. No part of the loss
    knows of :math:`F = \mathrm{lse} f`, which is a density in name only here.

    References:
        Elflein, arXiv:2302.12002 (framework of the thesis; without a paper of its own).

    Args:
        network: its logits ``[B, C]`` are f, C at least 2.
        sampler: moves the chains.
        pxsgld: :math:`w_x`.
        low: chains begin between `low` and `high` in every coordinate of the network's input space.
        high: see `low`.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative weight, an empty interval, or a network with a single logit.
    """

    def __init__(
        self,
        network: Network,
        sampler: SGLD,
        pxsgld: float = 1.0,
        low: float = -10.0,
        high: float = 10.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, input_noise, warmup_steps, optimizer, scheduler)
        if not self.has_classes:
            raise ValueError("entropies need classes, but network.num_classes is 1")
        if pxsgld < 0:
            raise ValueError(f"pxsgld must be at least 0, got {pxsgld}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be less than high, both finite, got {low} and {high}")
        self.sampler = sampler
        self.pxsgld = pxsgld
        self.low = low
        self.high = high
        self.generator: torch.Generator | None = None  # until training starts, PyTorch's own

    def on_fit_start(self) -> None:
        """Make the chains of every process others than those of the first."""
        self.generator = rank_generator(self.device, self.global_rank)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, y = batch["id"]
        if not self.pxsgld:
            return self.class_loss(self.logits(self.noisy(x)), y)
        start = torch.empty_like(x).uniform_(self.low, self.high, generator=self.generator)
        with scoring_mode(self.network):
            chain = self.sampler(lambda x: certainty(self.logits(x)), start, self.generator)
        data, drawn = self.logits(torch.cat([self.noisy(x), chain.x])).split(len(x))
        found = certainty(drawn)
        self.note({"entropy/data": -certainty(data).mean(), "entropy/samples": -found.mean()})
        self.note({f"sampler/{name}": value for name, value in chain.statistics.items()})
        return self.class_loss(data, y) | {"entropy": self.pxsgld * found.mean()}

    def predict_from(self, logits: Tensor) -> Prediction:
        prediction = super().predict_from(logits)
        order = ("Entropy", "max p(y|x)", "p(x)", "Max logit")
        return Prediction(prediction.probs, {name: prediction.scores[name] for name in order})


def certainty(logits: Tensor) -> Tensor:
    r"""Negative entropy :math:`\sum_c p_c \ln p_c`, ``[B]`` in :math:`[-\ln C, 0]`, of ``logits: [B, C]``."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1)
