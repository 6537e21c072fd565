"""ODIN: a classifier's confidence at a high temperature, after a small step towards more of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.errors import NotFittedError
from uncertainty_est.losses.outlier import max_log_prob
from uncertainty_est.measures import tempered_confidence
from uncertainty_est.models.base import Prediction
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.raw_units import RawUnits
from uncertainty_est.models.tuning import Loader, candidates, choose
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.ascent import ascending_step
from uncertainty_est.samplers.sgld import value_and_gradient

log = logging.getLogger(__name__)

# What the paper chooses from.
TEMPERATURES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
EPSILONS = tuple(float(epsilon) for epsilon in np.linspace(0, 0.004, 21))


class ODIN(CEBaseline):
    r"""Softmax classifier scored by its tempered confidence at a perturbed input.

    .. math:: S(x) = \max_c \mathrm{softmax}_c(f(\hat x) / T), \quad
        \hat x = x + \tfrac{\epsilon}{s}\, \mathrm{sign} \nabla_x \max_c \ln \mathrm{softmax}_c(f(x) / T)

    with the standard deviations s of the transform, so that :math:`\epsilon` is in units of pixels in [0, 1].
    :math:`\hat x` is not clipped, and the gradient's sign of 0 is 0.

    Scores: ``ODIN`` (S in [1/C, 1], the headline), then the classifier's own, at x. Training is the classifier's. A
    prediction takes two passes forward and one back.

    References:
        Liang et al., arXiv:1706.02690, Eq. 1 and 2.

    Args:
        network: logits and features of ``[B, *data_shape]``.
        temperature: T; a list, or ``None`` for the paper's, to choose from on ``fixed.val_ood_datasets`` by the largest
            mean AUROC.
        epsilon: :math:`\epsilon`, likewise.
        std: of the transform, for each channel or one; 1 for tables.

    Raises:
        ValueError: a temperature or standard deviation that is not positive, or a negative epsilon.
    """

    temperature: Tensor
    epsilon: Tensor

    def __init__(
        self,
        network: Network,
        temperature: float | Sequence[float] | None = 1000.0,
        epsilon: float | Sequence[float] | None = 0.0014,
        std: float | Sequence[float] = 1.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        self.temperatures = candidates(temperature, TEMPERATURES)
        self.epsilons = candidates(epsilon, EPSILONS)
        if not (self.temperatures and self.epsilons and min(self.temperatures) > 0 and min(self.epsilons) >= 0):
            raise ValueError(
                f"temperature must be positive and epsilon at least 0, got {self.temperatures} and {self.epsilons}"
            )
        self.needs_val_ood = len(self.temperatures) * len(self.epsilons) > 1
        self.units = RawUnits(std=std)
        for name, values in (("temperature", self.temperatures), ("epsilon", self.epsilons)):
            start = torch.nan if self.needs_val_ood else values[0]
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64))

    def tune(self, loader: Loader, ood_loaders: Mapping[str, Loader]) -> None:
        """Choose temperature and epsilon by the mean AUROC over sets; of equal ones the first, in the order given."""
        settings = [(t, e) for t in self.temperatures for e in self.epsilons]
        best, auroc = choose(self, self._all_scores, loader, ood_loaders)
        temperature, epsilon = settings[best]
        log.info("ODIN: temperature %g, epsilon %g (AUROC %.4f)", temperature, epsilon, auroc)
        self.temperature.fill_(temperature)
        self.epsilon.fill_(epsilon)

    def _all_scores(self, x: Tensor) -> Tensor:
        """S of ``x: [B, *data_shape]`` with every temperature and epsilon, ``[B, T * E]``, epsilons innermost."""
        with torch.autocast(x.device.type, enabled=False):
            columns = []
            for t in self.temperatures:
                gradient = value_and_gradient(partial(self._log_confidence, t), x)[1]
                columns += [
                    tempered_confidence(self.network(ascending_step(x, gradient, e, self.units.std)), t)
                    for e in self.epsilons
                ]
        return torch.stack(columns, -1)

    def _log_confidence(self, temperature: float, x: Tensor) -> Tensor:
        return max_log_prob(self.network(x) / temperature)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """As the classifier's, and ``perturbed [B, C]``, the logits at the perturbed input.

        Raises:
            NotFittedError: temperature and epsilon are not chosen.
        """
        if self.temperature.isnan():
            raise NotFittedError("ODIN has no temperature: call tune or load a finished run")
        clean: dict[str, Tensor] = {}

        def log_confidence(x: Tensor) -> Tensor:
            clean.update(CEBaseline.outputs(self, x))
            return max_log_prob(clean["logits"] / self.temperature.float())

        # The signs of a gradient that half precision has rounded are others.
        with torch.autocast(x.device.type, enabled=False):
            gradient = value_and_gradient(log_confidence, x.float())[1]
            moved = ascending_step(x, gradient, self.epsilon.float(), self.units.std)
            perturbed = self.network(moved)
        if torch.is_grad_enabled():
            # Of a copy of x: whoever wants gradients, such as an attack, wants them at x itself.
            clean = CEBaseline.outputs(self, x)
        else:
            clean = {name: value.detach() for name, value in clean.items()}
        return clean | {"perturbed": perturbed}

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        classifier = super().predict_from(outputs)
        score = tempered_confidence(outputs["perturbed"], self.temperature)
        return Prediction(classifier.probs, {"ODIN": score} | classifier.scores)
