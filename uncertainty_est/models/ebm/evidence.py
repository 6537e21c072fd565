"""Energy-Prior Networks: the density of an energy-based model is the evidence of a Dirichlet distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.models.base import Prediction
from uncertainty_est.models.ebm.energy import EnergyModel


class EvidentialEnergy(EnergyModel):
    r"""Mixin of an :class:`EnergyModel` with classes whose logits are Dirichlet evidence.

    .. math:: \alpha_c = 1 + e^{f_c(x)}, \quad \alpha_0 - C = e^{F(x)}

    (without `alpha_fix`, :math:`\alpha_c = e^{f_c}` and :math:`\alpha_0 = e^F`), so that training the density raises
    the evidence on data and lowers it elsewhere, which is what Prior Networks need outliers for.

    Scores: ``p(x)`` (the headline), then those of :func:`uncertainty_est.measures.dirichlet_scores`. Class
    probabilities are :math:`\alpha / \alpha_0`.

    References:
        Elflein, arXiv:2302.12002 (Energy-Prior Networks).
    """

    alpha_fix: bool

    def alpha(self, logits: Tensor) -> Tensor:
        """Concentrations ``[B, C]`` float64 of ``logits: [B, C]``."""
        return logits.double().clamp(max=measures.LARGEST_LOG_ALPHA).exp() + (1.0 if self.alpha_fix else 1e-8)

    def probs_from(self, logits: Tensor) -> Tensor:
        alpha = self.alpha(logits)
        return (alpha / alpha.sum(-1, keepdim=True)).float()

    def predict_from(self, logits: Tensor) -> Prediction:
        scores = {"p(x)": torch.logsumexp(logits, -1)} | measures.dirichlet_scores(self.alpha(logits))
        return Prediction(self.probs_from(logits), scores)
