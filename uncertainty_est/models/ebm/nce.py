"""Energy-based model trained by noise-contrastive estimation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.densities.noise import NoiseDensity
from uncertainty_est.losses.contrastive import noise_contrastive
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.networks.base import Network


class NCE(ObjectiveModel):
    r"""Density learned by telling data from noise of known density :math:`p_n`.

    .. math:: L = \operatorname{BCE}\bigl(F - \ln p_n - \ln \nu\bigr)
        + w_{\text{clf}} \operatorname{mean} [\mathrm{lse} f - f_y]

    with label 1 for data and 0 for :math:`\nu` samples of noise each. Its minimum is the normalised log-density,
    :math:`F = \ln p`: no constant is missing. Noise that nothing is learned from is easy to tell from data; the nearer
    :math:`p_n` is to the data, the more F knows.

    References:
        Gutmann and Hyvärinen, JMLR 13 (2012).

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        noise: :math:`p_n`; what it was not given is fitted to the training data before the first step.
        noise_ratio: :math:`\nu`.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative number, or no noise.
    """

    def __init__(
        self,
        network: Network,
        noise: NoiseDensity,
        noise_ratio: int = 1,
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, clf_weight, input_noise, warmup_steps, optimizer, scheduler)
        if noise_ratio < 1:
            raise ValueError(f"noise_ratio must be at least 1, got {noise_ratio}")
        self.noise = noise
        self.noise_ratio = noise_ratio
        self.keep_from_ddp("noise")

    def setup(self, stage: str) -> None:
        """Fit the noise to the training split; every process reads all of it, so that all have the same noise."""
        if stage == "fit":
            loader = self.trainer.datamodule.plain_loader("train")  # type: ignore[attr-defined]
            self.noise.fit(x for x, _ in loader)

    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        noise = self.noise.sample(self.noise_ratio * len(x), self.generator)
        # One pass, as networks may normalise a batch.
        inputs = torch.cat([x, noise])
        logits = self.logits(inputs)
        log_density = logits.logsumexp(-1)
        log_ratio = log_density - self.noise.log_prob(inputs)
        data, noise_ratio = log_ratio[: len(x)], log_ratio[len(x) :]
        self.note(
            {
                "F/noise": log_density[len(x) :].mean(),
                "accuracy/data": (data > 0).float().mean(),
                "accuracy/noise": (noise_ratio < 0).float().mean(),
            }
        )
        return {"nce": noise_contrastive(data, noise_ratio)}, logits[: len(x)]
