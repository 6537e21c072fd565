"""Fine-tuning a classifier on outliers: energies pushed apart, or predictions flattened on outliers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.losses.outlier import energy_hinge, uniform_cross_entropy
from uncertainty_est.models.base import Batch, Prediction, State
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network

log = logging.getLogger(__name__)

SCORES = ("energy", "OE")


class EnergyFinetuning(CEBaseline):
    r"""Classifier fine-tuned with outliers, with energies :math:`E(x) = -\mathrm{lse} f(x)`, low on data.

    ``energy``: :math:`L = \mathrm{CE} + w \bigl[ \operatorname{mean}_{\text{in}} \max(0, E - m_{\text{in}})^2 +
    \operatorname{mean}_{\text{out}} \max(0, m_{\text{out}} - E)^2 \bigr]`. Headline score: ``p(x)``, that is -E.

    ``OE`` (outlier exposure): :math:`L = \mathrm{CE} + \lambda \operatorname{mean}_{\text{out}} \bigl[ \mathrm{lse} f -
    \tfrac1C \sum_c f_c \bigr]`. Headline score: ``max p(y|x)``; ``CE to uniform``, the bracket, is one more.

    Starts from a run of the plain classifier, ``fixed.init_from``, and trains on outliers, ``fixed.ood_dataset``. The
    learning rate falls along half a cosine, step by step, from the optimizer's own to `final_lr` at the last step.

    References:
        Liu et al., arXiv:2010.03759, Eq. 7 to 9. Hendrycks et al., arXiv:1812.04606, Eq. 1.

    Args:
        network: logits and features of ``[B, *data_shape]``.
        score: ``"energy"`` or ``"OE"``, the term that outliers enter by.
        margin_in: :math:`m_{\text{in}}`, the energy that data should not exceed.
        margin_out: :math:`m_{\text{out}}`, the energy that outliers should not fall below.
        energy_weight: w.
        oe_weight: :math:`\lambda`.
        final_lr: learning rate of the last step.
        scheduler: in place of the cosine; stepped once an epoch.

    Raises:
        ValueError: another score, margins in the wrong order, or a negative number.
    """

    needs_ood = True

    def __init__(
        self,
        network: Network,
        score: str = "energy",
        margin_in: float = -23.0,
        margin_out: float = -5.0,
        energy_weight: float = 0.1,
        oe_weight: float = 0.5,
        final_lr: float = 1e-6,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(map(repr, SCORES))}, got '{score}'")
        if not margin_in <= margin_out:
            raise ValueError(f"margin_in must not exceed margin_out, got {margin_in} and {margin_out}")
        if energy_weight < 0 or oe_weight < 0 or final_lr < 0:
            raise ValueError(
                f"energy_weight, oe_weight and final_lr must be at least 0, got {energy_weight}, {oe_weight} and"
                f" {final_lr}"
            )
        self.score = score
        self.margin_in = margin_in
        self.margin_out = margin_out
        self.energy_weight = energy_weight
        self.oe_weight = oe_weight
        self.final_lr = final_lr
        self._from_scratch = True

    def init_from(self, states: list[State]) -> None:
        super().init_from(states)
        self._from_scratch = False

    def on_fit_start(self) -> None:
        if self._from_scratch and self.trainer.is_global_zero:
            log.warning(
                "%s trains from scratch; fixed.init_from=<run of a plain classifier> starts from trained weights",
                type(self).__name__,
            )

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        prediction = super().predict_from(outputs)
        scores = prediction.scores
        if self.score == "energy":
            scores = {"p(x)": scores.pop("p(x)")} | scores
        else:
            scores["CE to uniform"] = uniform_cross_entropy(outputs["logits"].double()).float()
        return Prediction(prediction.probs, scores)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.validate_batch(batch)[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        # Data and outliers in one pass, so that batch normalisation sees both.
        logits = self.network(torch.cat([x, batch["ood"][0]])).float()
        known, unknown = logits[: len(x)], logits[len(x) :]
        return {"ce": F.cross_entropy(known, y)} | self._outlier_loss(known, unknown), known.softmax(-1)

    def _outlier_loss(self, known: Tensor, unknown: Tensor) -> dict[str, Tensor]:
        energy_in, energy_out = -known.logsumexp(-1), -unknown.logsumexp(-1)
        self.note({"E/id": energy_in.mean(), "E/ood": energy_out.mean()})
        if self.score == "OE":
            return {"oe": self.oe_weight * uniform_cross_entropy(unknown).mean()}
        hinge_in, hinge_out = energy_hinge(energy_in, energy_out, self.margin_in, self.margin_out)
        return {"energy_id": self.energy_weight * hinge_in, "energy_ood": self.energy_weight * hinge_out}

    def configure_optimizers(self) -> Any:
        """The optimizer and its cosine decay by steps.

        Raises:
            ConfigError: no optimizer was configured, or training has no last step.
        """
        configured = super().configure_optimizers()
        if isinstance(configured, dict):
            return configured
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(configured, T_max=self.last_step(), eta_min=self.final_lr)
        return {"optimizer": configured, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
