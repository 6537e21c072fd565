"""VERA with the class loss of Posterior Networks on logits that are evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.losses.dirichlet import expected_cross_entropy
from uncertainty_est.measures import dirichlet_entropy
from uncertainty_est.models.ebm.evidence import EvidentialEnergy
from uncertainty_est.models.ebm.vera import VERA
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.vera import LatentGenerator

# Beyond this, the terms of an entropy are so large that no digit of their sum is left in float64.
_LARGEST_LOGIT = 30.0


class VERAPostNet(EvidentialEnergy, VERA):
    r"""Logits are evidence, :math:`\alpha_c = 1 + e^{f_c}`, whose amount VERA trains, with the class loss

    .. math:: L_{\text{clf}} = \operatorname{mean} [\psi(\alpha_0) - \psi(\alpha_y)]
        - w_H \operatorname{mean} H[\mathrm{Dir}(\alpha)]

    (the uncertain cross-entropy) in place of VERA's cross-entropy. One more term, off by default, makes the energy's
    player flatten the Dirichlet distributions of the generator's samples.

    References:
        Elflein, arXiv:2302.12002. Loss: Charpentier et al., arXiv:2006.09239, Eq. 7.

    Args:
        network: f, of at least 2 classes.
        generator: of samples.
        entropy_reg: :math:`w_H`.
        w_neg_entropy_loss: weight of the samples' negative Dirichlet entropy.
        px_weight: see :class:`VERA`, also for all that follow.

    Raises:
        ValueError: fewer than 2 classes, or a negative weight.
    """

    alpha_fix = True

    def __init__(
        self,
        network: Network,
        generator: LatentGenerator,
        entropy_reg: float = 0.0,
        w_neg_entropy_loss: float = 0.0,
        px_weight: float = 1.0,
        p_control: float = 0.1,
        n_control: float = 0.1,
        pg_control: float = 0.1,
        clf_ent_weight: float = 0.0,
        clf_weight: float = 100.0,
        entropy_weight: float = 1.0,
        entropy_estimator: str = "importance",
        posterior_samples: int = 20,
        init_posterior_sigma: float = 0.1,
        ebm_iters: int = 1,
        generator_iters: int = 1,
        gradient_clip_val: float | None = None,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        decay_from: float | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        generator_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        posterior_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            network,
            generator,
            px_weight,
            p_control,
            n_control,
            pg_control,
            clf_ent_weight,
            clf_weight,
            entropy_weight,
            entropy_estimator,
            posterior_samples,
            init_posterior_sigma,
            ebm_iters,
            generator_iters,
            gradient_clip_val,
            input_noise,
            warmup_steps,
            decay_from,
            optimizer,
            generator_optimizer,
            posterior_optimizer,
            scheduler,
        )
        if not self.has_classes:
            raise ValueError("network must have at least 2 classes")
        if min(entropy_reg, w_neg_entropy_loss) < 0:
            raise ValueError(
                f"entropy_reg and w_neg_entropy_loss must be at least 0, got {entropy_reg} and {w_neg_entropy_loss}"
            )
        self.entropy_reg = entropy_reg
        self.w_neg_entropy_loss = w_neg_entropy_loss

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        parts = {"uce": expected_cross_entropy(self.alpha(logits), y).mean().float()}
        if self.entropy_reg:
            parts["dirichlet_entropy"] = -self.entropy_reg * self._entropy(logits)
        return parts

    def sample_loss(self, logits: Tensor) -> dict[str, Tensor]:
        if not self.w_neg_entropy_loss:
            return {}
        return {"sample_entropy": -self.w_neg_entropy_loss * self._entropy(logits)}

    def _entropy(self, logits: Tensor) -> Tensor:
        return dirichlet_entropy(self.alpha(logits.clamp(max=_LARGEST_LOGIT))).mean().float()
