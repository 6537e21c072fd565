"""ACET: a classifier that learns to be uncertain on noise and all around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.losses.outlier import max_log_prob
from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ceda import CEDA
from uncertainty_est.models.raw_units import RawUnits
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.ascent import ascend

# Direction of the steps in each ball.
DIRECTIONS = {"linf": "sign", "l2": "l2"}


class ACET(CEDA):
    r"""Adversarial confidence enhancing training: low confidence on the most confident points near outliers z.

    As CEDA, on :math:`\arg\max_u \max_c \ln p(c \mid u)` over :math:`\lVert u - z \rVert \le \epsilon`, which projected
    gradient ascent looks for from z, with the network in eval mode. Distances are in raw units, in which the box of the
    data lies, see `mean` and `std`. In the first epochs the weight of the outliers is small; validation has the full
    weight and its own attack throughout.

    Scores are the softmax baseline's, ``max p(y|x)`` first.

    References:
        Hein et al., arXiv:1812.05720, Section 4. Steps of the ascent: Meinke and Hein, arXiv:1909.12180.

    Args:
        network: logits and features of ``[B, *data_shape]``.
        ood_weight: :math:`\lambda`.
        kind: the loss on outliers, ``"max"`` or ``"uniform"``.
        epsilon: largest distance from z.
        norm: ``"linf"`` (steps along the gradient's signs) or ``"l2"`` (along the gradient divided by its norm).
        steps: of the ascent.
        step_size: of its first step; halved for a sample after a worse point, times 1.1 otherwise.
        box: least and greatest raw value, [0, 1] for images; ``None`` for no limits, as of tables.
        mean: of the transform, for each channel or one; raw values are ``std * x + mean``.
        std: likewise.
        warmup_epochs: epochs in which the weight is `warmup_weight`.
        warmup_weight: in place of `ood_weight`.

    Raises:
        ValueError: another norm or kind, a negative number, a step size or standard deviation that is not positive, or
            an empty box.
    """

    def __init__(
        self,
        network: Network,
        ood_weight: float = 1.0,
        kind: str = "max",
        epsilon: float = 0.3,
        norm: str = "linf",
        steps: int = 40,
        step_size: float = 0.1,
        box: Sequence[float] | None = (0.0, 1.0),
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        warmup_epochs: int = 3,
        warmup_weight: float = 0.001,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, ood_weight, kind, optimizer, scheduler)
        if norm not in DIRECTIONS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, DIRECTIONS))}, got '{norm}'")
        if min(epsilon, steps, warmup_epochs, warmup_weight) < 0 or not step_size > 0:
            raise ValueError(
                "epsilon, steps, warmup_epochs and warmup_weight must be at least 0 and step_size positive, got"
                f" {epsilon}, {steps}, {warmup_epochs}, {warmup_weight} and {step_size}"
            )
        if box is not None and not (len(box) == 2 and box[0] < box[1]):
            raise ValueError(f"box must be the least and the greatest raw value, or null, got {list(box)}")
        self.epsilon = epsilon
        self.norm = norm
        self.steps = steps
        self.step_size = step_size
        self.box = None if box is None else (float(box[0]), float(box[1]))
        self.units = RawUnits(mean, std)
        self.warmup_epochs = warmup_epochs
        self.warmup_weight = warmup_weight

    def training_weight(self) -> float:
        return self.warmup_weight if self.current_epoch < self.warmup_epochs else self.ood_weight

    def outliers(self, z: Tensor) -> Tensor:
        """The most confident points found near outliers ``z: [B, *data_shape]``, without gradients."""
        seed = self._clip(self.units.from_network(z))

        def confidence(u: Tensor) -> Tensor:
            return max_log_prob(self.network(self.units.to_network(u)).float())

        def project(u: Tensor) -> Tensor:
            # A box that holds the seed moves no point away from it, so that the ball comes first.
            return self._clip(seed + self._into_ball(u - seed))

        with scoring_mode(self.network):
            found = ascend(confidence, seed, project, self.steps, self.step_size, DIRECTIONS[self.norm])
            return self.units.to_network(found)

    def _clip(self, u: Tensor) -> Tensor:
        return u if self.box is None else u.clamp(*self.box)

    def _into_ball(self, offset: Tensor) -> Tensor:
        if self.norm == "linf":
            return offset.clamp(-self.epsilon, self.epsilon)
        length = offset.flatten(1).norm(dim=1).view(-1, *[1] * (offset.ndim - 1))
        return offset * (self.epsilon / length.clamp(min=self.epsilon)) if self.epsilon else 0 * offset
