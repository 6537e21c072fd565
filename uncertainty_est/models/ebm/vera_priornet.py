"""EPN-V: an Energy-Prior Network whose density is trained against a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.dirichlet import dirichlet_kl
from uncertainty_est.measures import dirichlet_entropy
from uncertainty_est.models.ebm.evidence import EvidentialEnergy
from uncertainty_est.models.ebm.vera import VERA
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.vera import LatentGenerator

# Below this, lgamma of a concentration loses all digits.
_SMALLEST = 1e-8
# Beyond this, the terms of a divergence are so large that no digit of their sum is left in float64.
_LARGEST_LOGIT = 30.0


class VERAPriorNet(EvidentialEnergy, VERA):
    r"""Logits are evidence, :math:`\alpha_c = 1 + e^{f_c}`; VERA trains how much there is, the class loss where it is.

    .. math:: L_{\text{clf}} = \operatorname{mean} \mathrm{KL}(\mathrm{Dir}(\alpha) \| \mathrm{Dir}(\beta))
        - w_H \operatorname{mean} H[\mathrm{Dir}(\alpha)], \quad
        \beta_y = 1 + \textstyle\sum_c e^{f_c}, \ \beta_{c \ne y} = 1

    in place of VERA's cross-entropy: all evidence that an input has belongs to its class. Two more terms, off by
    default, make the energy's player flatten the Dirichlet distributions of the generator's samples.

    With `detach_target` the gradient does not see that :math:`\beta` follows the evidence. Without, misplaced evidence
    is also lowered; accuracy then comes slowly, but evidence is less prone to grow where there are no data.

    References:
        Elflein, arXiv:2302.12002 (Energy-Prior Networks).

    Args:
        network: f, of at least 2 classes.
        generator: of samples.
        alpha_fix: add 1 to concentrations, so that no density has its modes in the corners.
        concentration: :math:`\beta_c` of the other classes, and of all classes of samples.
        target_concentration: :math:`\beta_y`; if not given, it is the evidence as above.
        strict_target: with `alpha_fix`, add 1 to the evidence in :math:`\beta_y` as in :math:`\alpha`, so that the
            divergence of a perfect prediction is 0.
        detach_target: take :math:`\beta` as a constant.
        entropy_reg: :math:`w_H`.
        w_neg_sample_loss: weight of the samples' divergence from the Dirichlet distribution of `concentration`.
        w_neg_entropy_loss: weight of the samples' negative Dirichlet entropy.
        px_weight: see :class:`VERA`, also for all that follow.

    Raises:
        ValueError: fewer than 2 classes, a concentration that is not positive, a negative weight.
    """

    def __init__(
        self,
        network: Network,
        generator: LatentGenerator,
        alpha_fix: bool = True,
        concentration: float = 1.0,
        target_concentration: float | None = None,
        strict_target: bool = True,
        detach_target: bool = False,
        entropy_reg: float = 0.0,
        w_neg_sample_loss: float = 0.0,
        w_neg_entropy_loss: float = 0.0,
        px_weight: float = 1.0,
        p_control: float = 0.1,
        n_control: float = 0.1,
        pg_control: float = 0.1,
        clf_ent_weight: float = 0.0,
        clf_weight: float = 1.0,
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
        if not (concentration > 0 and (target_concentration is None or target_concentration > 0)):
            raise ValueError(
                f"concentration and target_concentration must be positive, got {concentration} and"
                f" {target_concentration}"
            )
        if min(entropy_reg, w_neg_sample_loss, w_neg_entropy_loss) < 0:
            raise ValueError(
                "entropy_reg, w_neg_sample_loss and w_neg_entropy_loss must be at least 0, got"
                f" {entropy_reg}, {w_neg_sample_loss} and {w_neg_entropy_loss}"
            )
        self.alpha_fix = alpha_fix
        self.concentration = concentration
        self.target_concentration = target_concentration
        self.strict_target = strict_target
        self.detach_target = detach_target
        self.entropy_reg = entropy_reg
        self.w_neg_sample_loss = w_neg_sample_loss
        self.w_neg_entropy_loss = w_neg_entropy_loss

    def target(self, logits: Tensor, y: Tensor) -> Tensor:
        r""":math:`\beta`, ``[B, C]`` float64, of ``logits: [B, C]`` and labels ``y: [B]``."""
        if self.target_concentration is None:
            evidence = logits.double().clamp(max=_LARGEST_LOGIT).exp().sum(-1)
            at_label = evidence + 1 if self.strict_target and self.alpha_fix else evidence.clamp(min=_SMALLEST)
            if self.detach_target:
                at_label = at_label.detach()
        else:
            at_label = logits.new_full(y.shape, self.target_concentration, dtype=torch.double)
        is_label = F.one_hot(y, logits.shape[-1]).bool()
        return at_label.unsqueeze(-1).where(is_label, self.concentration)

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        alpha = self.alpha(logits.clamp(max=_LARGEST_LOGIT))
        parts = {"kl": dirichlet_kl(alpha, self.target(logits, y)).mean().float()}
        if self.entropy_reg:
            parts["dirichlet_entropy"] = -self.entropy_reg * dirichlet_entropy(alpha).mean().float()
        return parts

    def sample_loss(self, logits: Tensor) -> dict[str, Tensor]:
        alpha = self.alpha(logits.clamp(max=_LARGEST_LOGIT))
        parts = {}
        if self.w_neg_sample_loss:
            divergence = dirichlet_kl(alpha, torch.full_like(alpha, self.concentration)).mean()
            parts["sample_kl"] = self.w_neg_sample_loss * divergence.float()
        if self.w_neg_entropy_loss:
            parts["sample_entropy"] = -self.w_neg_entropy_loss * dirichlet_entropy(alpha).mean().float()
        return parts
