"""Temperature scaling: a classifier's logits divided by the one number that fits the validation split best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, distributed

from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.models.base import Prediction, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.01, 100.0


class TemperatureScaling(CEBaseline):
    r"""Softmax classifier with probabilities :math:`\mathrm{softmax}(f(x) / T)`, T fitted after training.

    T minimises the negative log-likelihood of the validation split, see :func:`fit_temperature`. It changes neither the
    predicted classes nor the training, which is the classifier's. Scores are the softmax baseline's, of the logits
    f / T: ``max p(y|x)`` first.

    References:
        Guo et al., arXiv:1706.04599, Section 4.2.

    Args:
        network: logits f of ``[B, *data_shape]``.
    """

    posthoc_split = "val"

    def __init__(
        self,
        network: Network,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        self.scaling = Temperature()
        self.keep_from_ddp("scaling")

    def fit_posthoc(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit T; under DDP to the shares of all ranks."""
        self.scaling.fit(*collect_logits(self, loader))

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        return super().predict_from(outputs | {"logits": self.scaling(outputs["logits"])})


class Temperature(Fitted):
    """Divides logits by :attr:`temperature`, a fitted float64 scalar."""

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def fit(self, logits: Tensor, y: Tensor) -> None:
        """Fit to ``logits: [N, C]`` with labels ``y: [N]``, see :func:`fit_temperature`."""
        self.temperature.copy_(fit_temperature(logits, y))
        self.fitted.fill_(True)
        log.info("temperature %.4f", self.temperature)

    def forward(self, logits: Tensor) -> Tensor:
        """``logits / T``, ``[B, C]`` in the type of the logits.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self.require_fit()
        return scale(logits, self.temperature)


def scale(logits: Tensor, temperature: Tensor) -> Tensor:
    """``logits / T``, ``[B, C]``, divided in float64 and in the type of the logits again."""
    return (logits.double() / temperature).to(logits.dtype)


def fit_temperature(logits: Tensor, y: Tensor) -> Tensor:
    r"""The temperature of least negative log-likelihood, a float64 scalar on the device of the logits.

    .. math:: \min_T \sum_i \mathrm{lse}(f_i / T) - f_{i y_i} / T

    The sum is convex in :math:`\beta = 1 / T` with slope :math:`\sum_i \mathrm{E}_{c \sim p_i} f_{ic} - f_{i y_i}`,
    so the minimum is the only one. It is found by LBFGS in :math:`\ln \beta`. A split that is classified without an
    error is fitted ever better as T goes to 0, and tells nothing: where the minimum is below 0.01, T is 1. Where it is
    above 100, of logits that tell less than nothing, T is 100. The likelihood is never worse than at T = 1.

    Args:
        logits: f, ``[N, C]``; under DDP of this rank, and N may then be 0 on some.
        y: labels, ``[N]``.

    References:
        Guo et al., arXiv:1706.04599, Section 4.2.
    """
    # Relative to the largest logit: the likelihood is the same, and loses no digits at large offsets.
    f = logits.detach().double()
    f = f - f.amax(-1, keepdim=True) if len(f) else f
    target = f.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    count = _over_ranks(torch.tensor(len(f), dtype=torch.float64, device=f.device))

    def nll_and_slope(log_beta: Tensor) -> tuple[Tensor, Tensor]:
        scaled = f * log_beta.exp()
        slope = (scaled.softmax(-1) * f).sum(-1) - target
        sums = torch.stack([(scaled.logsumexp(-1) - target * log_beta.exp()).sum(), slope.sum() * log_beta.exp()])
        nll, along = _over_ranks(sums) / count
        return nll, along

    log_beta = torch.zeros((), dtype=torch.float64, device=f.device)
    if nll_and_slope(log_beta - math.log(LOWEST))[1] <= 0:
        log.warning("the split is classified without an error, which no temperature fits best; it stays 1")
        return torch.ones_like(log_beta)
    if nll_and_slope(log_beta - math.log(HIGHEST))[1] >= 0:
        log.warning("the best temperature is above %g, which is taken", HIGHEST)
        return torch.full_like(log_beta, HIGHEST)

    log_beta.requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [log_beta], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def closure() -> Tensor:
        nll, log_beta.grad = nll_and_slope(log_beta)
        return nll

    lbfgs.step(closure)
    return (-log_beta.detach()).exp()


def collect_logits(method: CEBaseline, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and labels ``[N]`` of all ``(x, y)`` of a loader, on the method's device."""
    device = method.device
    logits = [torch.empty(0, method.network.head.out_features, device=device)]
    labels = [torch.empty(0, dtype=torch.long, device=device)]
    with scoring_mode(method):
        for x, y in loader:
            logits.append(method.outputs(x)["logits"])
            labels.append(y)
    return torch.cat(logits), torch.cat(labels)


def scalable(method: object, x: Tensor) -> TypeGuard[CEBaseline]:
    """Whether the probabilities of a method are the softmax of its logits, so that they can be scaled from outside.

    Found by trying, on ``x: [B, *data_shape]``: mixtures with other densities, averages over passes and what is scaled
    already are none.
    """
    if not isinstance(method, CEBaseline):
        return False
    with scoring_mode(method):
        logits = method.outputs(x)["logits"]
    probs = method.predict(x).probs
    return probs is not None and torch.allclose(probs.float(), logits.softmax(-1), atol=1e-5)


def _over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes, if there are any others."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
    return value
