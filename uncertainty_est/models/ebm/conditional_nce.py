"""Energy-based model trained by conditional noise-contrastive estimation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.losses.contrastive import conditional_noise_contrastive
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.networks.base import Network


class ConditionalNCE(ObjectiveModel):
    r"""Density learned by telling data x from their disturbed copies :math:`x' = x + u, u \sim N(0, \sigma^2 I)`.

    .. math:: L = \operatorname{mean} \mathrm{softplus}\bigl(-(F(x) - F(x'))\bigr)
        + w_c \operatorname{mean} |F| + w_{\text{clf}} \operatorname{mean} [\mathrm{lse} f - f_y]

    Noise this near is hard to tell from data, in any dimension; in turn F is learned within a few :math:`\sigma` of
    the data only, and up to a constant, which :math:`w_c` fixes loosely.

    References:
        Ceylan and Gutmann, arXiv:1806.03664.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        noise_std: :math:`\sigma`, a standard deviation, in the network's input space.
        num_noise: copies of each input.
        p_control_weight: :math:`w_c`, the mean being over data and copies.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation, beside `noise_std`.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative weight, a deviation that is not positive, or no copy.
    """

    def __init__(
        self,
        network: Network,
        noise_std: float = 0.1,
        num_noise: int = 1,
        p_control_weight: float = 0.0,
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, clf_weight, input_noise, warmup_steps, optimizer, scheduler)
        if not noise_std > 0:
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        if num_noise < 1:
            raise ValueError(f"num_noise must be at least 1, got {num_noise}")
        if p_control_weight < 0:
            raise ValueError(f"p_control_weight must be at least 0, got {p_control_weight}")
        self.noise_std = noise_std
        self.num_noise = num_noise
        self.p_control_weight = p_control_weight

    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        copies = x.repeat(self.num_noise, *[1] * (x.ndim - 1))
        disturbed = copies + self.noise_std * self.randn(copies.shape)
        logits = self.logits(torch.cat([x, disturbed]))
        log_density = logits.logsumexp(-1)
        log_ratio = log_density[: len(x)].repeat(self.num_noise) - log_density[len(x) :]
        self.note({"F/noise": log_density[len(x) :].mean(), "accuracy": (log_ratio > 0).float().mean()})
        parts = {"cnce": conditional_noise_contrastive(log_ratio).mean()}
        if self.p_control_weight:
            parts["p_control"] = self.p_control_weight * log_density.abs().mean()
        return parts, logits[: len(x)]
