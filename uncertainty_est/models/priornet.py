"""Prior Networks: sharp Dirichlet distributions on data, flat ones on outliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.dirichlet import dirichlet_kl
from uncertainty_est.models.dirichlet import DirichletNetwork
from uncertainty_est.networks.base import Network

# Below this, lgamma and digamma of a concentration without alpha_fix lose all digits.
_SMALLEST = 1e-8


class PriorNet(DirichletNetwork):
    r"""Network with concentrations :math:`\alpha = e^{f(x)}` (plus 1 with `alpha_fix`), pulled to :math:`\beta`.

    .. math:: L = \tfrac1t \bigl( \operatorname{mean}_{\text{in}} D(\alpha, \beta_y) + \gamma
        \operatorname{mean}_{\text{out}} D(\alpha, \beta_{\text{out}}) \bigr), \quad
        \beta_y = c + t\, \mathrm{onehot}(y), \ \beta_{\text{out}} = c

    D is the reverse divergence :math:`\mathrm{KL}(\mathrm{Dir}(\alpha) \| \mathrm{Dir}(\beta))` or, with
    ``reverse=False``, the forward one. Division by t keeps the loss's scale. Trains on outliers, ``fixed.ood_dataset``.
    Headline score: ``MI``.

    References:
        Malinin and Gales, arXiv:1905.13472 (reverse divergence) and arXiv:1802.10501 (forward).

    Args:
        network: logits of ``[B, *data_shape]``.
        target_concentration: t, added at the label.
        base_concentration: c, of every other class and of outliers.
        gamma: weight of the outliers.
        reverse: the direction of the divergence.
        alpha_fix: add 1 to concentrations, so that no density has its modes in the corners.

    Raises:
        ValueError: a concentration that is not positive, or a negative weight.
    """

    needs_ood = True
    headline = "MI"

    def __init__(
        self,
        network: Network,
        target_concentration: float = 100.0,
        base_concentration: float = 1.0,
        gamma: float = 1.0,
        reverse: bool = True,
        alpha_fix: bool = True,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if not (target_concentration > 0 and base_concentration > 0):
            raise ValueError(
                f"target_concentration and base_concentration must be positive, got {target_concentration} and"
                f" {base_concentration}"
            )
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.target_concentration = target_concentration
        self.base_concentration = base_concentration
        self.gamma = gamma
        self.reverse = reverse
        self.alpha_fix = alpha_fix

    def concentrations(self, logits: Tensor) -> Tensor:
        return logits.exp() + (1.0 if self.alpha_fix else _SMALLEST)

    def loss_from(self, alpha: Tensor, y: Tensor, alpha_ood: Tensor | None) -> dict[str, Tensor]:
        sharp = self.base_concentration + self.target_concentration * F.one_hot(y, alpha.shape[-1]).to(alpha)
        parts = {"id": self._divergence(alpha, sharp).mean() / self.target_concentration}
        if alpha_ood is not None:
            flat = torch.full_like(alpha_ood, self.base_concentration)
            parts["ood"] = self.gamma * self._divergence(alpha_ood, flat).mean() / self.target_concentration
        return parts

    def _divergence(self, alpha: Tensor, target: Tensor) -> Tensor:
        return dirichlet_kl(alpha, target) if self.reverse else dirichlet_kl(target, alpha)
