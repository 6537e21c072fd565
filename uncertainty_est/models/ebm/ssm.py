"""Energy-based model trained by sliced score matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.losses.score_matching import SLICES, draw_slices, sliced_score_matching
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.networks.base import Network


class SSM(ObjectiveModel):
    r"""Density whose score matches that of the data, :math:`s(x) = \nabla_x F(x)`, without any sample of the model.

    .. math:: L = w \operatorname{mean}_{i, v} \bigl[ \tfrac12 \lVert s(x_i) \rVert^2 + v^\top (\nabla_x s(x_i))\, v
        \bigr] + w_{\text{clf}} \operatorname{mean}_i [\mathrm{lse} f(x_i) - f_{y_i}(x_i)]

    The sum is over all dimensions of x. F must be smooth, so that networks need activations such as ``elu``,
    ``softplus``, ``silu`` or ``tanh``: with ReLU and one logit the second term is zero and F becomes constant.
    Data on a surface or of few values allow densities that are infinitely peaked; `input_noise` of standard deviation
    :math:`\sigma` bounds the loss from below by about :math:`-D / (2 \sigma^2)`, which is also the scale that
    `clf_weight` has to be compared with.

    References:
        Song et al., arXiv:1905.07088. Loss: :func:`uncertainty_est.losses.score_matching.sliced_score_matching`.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        ssm_weight: w; 1 / (C H) for images of C channels and height H divides as much as a sum over their last axis
            alone.
        num_particles: slices v of each input.
        slices: distribution of v, ``"gaussian"`` or ``"rademacher"``.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative weight, no slice, or slices of another distribution.
    """

    def __init__(
        self,
        network: Network,
        ssm_weight: float = 1.0,
        num_particles: int = 1,
        slices: str = "gaussian",
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, clf_weight, input_noise, warmup_steps, optimizer, scheduler)
        if ssm_weight < 0:
            raise ValueError(f"ssm_weight must be at least 0, got {ssm_weight}")
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        if slices not in SLICES:
            raise ValueError(f"slices must be one of {', '.join(map(repr, SLICES))}, got '{slices}'")
        self.ssm_weight = ssm_weight
        self.num_particles = num_particles
        self.slices = slices

    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # One row for each slice: second derivatives of rows are independent, and every network can do this.
        rows = x.repeat(self.num_particles, *[1] * (x.ndim - 1)).requires_grad_()
        logits = self.logits(rows)
        v = draw_slices(rows, self.slices, self.generator)
        half_norm, curvature = sliced_score_matching(logits.logsumexp(-1), rows, v)
        self.note({"half_squared_score": half_norm.mean(), "curvature": curvature.mean()})
        return {"ssm": self.ssm_weight * (half_norm + curvature).mean()}, logits[: len(x)]
