"""Evidential deep learning: evidence for each class, shrunk where it is misleading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.dirichlet import dirichlet_kl, expected_brier
from uncertainty_est.models.dirichlet import DirichletNetwork
from uncertainty_est.networks.base import Network

_EVIDENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda f: F.elu(f) + 1,
    "softplus": F.softplus,
    "relu": F.relu,
    "exp": torch.exp,
}


class EDL(DirichletNetwork):
    r"""Network with concentrations :math:`\alpha = 1 + e(f(x))` from non-negative evidence e.

    .. math:: L = \operatorname{mean} \mathbb E_{p \sim \mathrm{Dir}(\alpha)} \|\mathrm{onehot}(y) - p\|^2
        + \lambda_t \operatorname{mean} \mathrm{KL}(\mathrm{Dir}(\tilde\alpha) \| \mathrm{Dir}(1)), \quad
        \tilde\alpha = y + (1 - y) \odot \alpha, \ \lambda_t = \min(1, t / T)

    in epoch t: evidence for wrong classes is misleading and is shrunk, gently at first. Headline score: ``log alpha0``,
    the evidence (its vacuity :math:`C / \alpha_0` ranks in the same way).

    References:
        Sensoy et al., arXiv:1806.01768, Eq. 5 and Section 4.

    Args:
        network: logits of ``[B, *data_shape]``.
        evidence: ``elu`` (plus 1), ``softplus``, ``relu`` or ``exp`` of the logits.
        annealing_epochs: T; 0 gives the divergence its full weight at once.
        kl_weight: factor of the divergence; 0 leaves it out.

    Raises:
        ValueError: an unknown evidence function, or negative numbers.
    """

    headline = "log alpha0"

    def __init__(
        self,
        network: Network,
        evidence: str = "elu",
        annealing_epochs: int = 10,
        kl_weight: float = 1.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if evidence not in _EVIDENCE:
            known = ", ".join(f"'{name}'" for name in _EVIDENCE)
            raise ValueError(f"evidence must be one of {known}, got '{evidence}'")
        if annealing_epochs < 0 or kl_weight < 0:
            raise ValueError(
                f"annealing_epochs and kl_weight must be at least 0, got {annealing_epochs} and {kl_weight}"
            )
        self.evidence = evidence
        self.annealing_epochs = annealing_epochs
        self.kl_weight = kl_weight

    def concentrations(self, logits: Tensor) -> Tensor:
        return 1 + _EVIDENCE[self.evidence](logits)

    def loss_from(self, alpha: Tensor, y: Tensor, alpha_ood: Tensor | None) -> dict[str, Tensor]:
        misleading = alpha.masked_fill(F.one_hot(y, alpha.shape[-1]).bool(), 1.0)
        annealed = min(1.0, self.current_epoch / self.annealing_epochs) if self.annealing_epochs else 1.0
        kl = dirichlet_kl(misleading, torch.ones_like(alpha)).mean()
        return {"brier": expected_brier(alpha, y).mean(), "kl": self.kl_weight * annealed * kl}
