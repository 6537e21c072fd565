"""Scores of the logits alone."""

from __future__ import annotations

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.posthoc.base import PosthocScore


class MSP(PosthocScore):
    r"""Maximum softmax probability, :math:`\max_c \mathrm{softmax}(f)_c` in [1/C, 1].

    References:
        Hendrycks and Gimpel, arXiv:1610.02136.
    """

    name = "msp"
    title = "MSP"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return measures.tempered_confidence(logits, 1.0)


class MaxLogit(PosthocScore):
    r"""Largest logit, :math:`\max_c f_c`.

    References:
        Hendrycks et al., arXiv:1911.11132.
    """

    name = "max_logit"
    title = "MaxLogit"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return logits.amax(-1)


class Energy(PosthocScore):
    r"""Negative free energy, :math:`T \ln \sum_c e^{f_c / T}`; adding a constant to all logits adds it to the score.

    References:
        Liu et al., arXiv:2010.03759, Eq. 4.

    Args:
        temperature: T.

    Raises:
        ValueError: a temperature that is not positive.
    """

    name = "energy"
    title = "Energy"

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.temperature * (logits.double() / self.temperature).logsumexp(-1)


class SoftmaxEntropy(PosthocScore):
    r"""Negative entropy of the softmax, :math:`-H[\mathrm{softmax} f]` in :math:`[-\ln C, 0]`.

    References:
        Hendrycks and Gimpel, arXiv:1610.02136.
    """

    name = "entropy"
    title = "Softmax entropy"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -measures.entropy(logits.double().softmax(-1))


class GEN(PosthocScore):
    r"""Generalised entropy of the largest probabilities, :math:`-\sum_{j \le M} p_{(j)}^\gamma (1 - p_{(j)})^\gamma`.

    References:
        Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.

    Args:
        gamma: :math:`\gamma` in (0, 1].
        top: M; all classes where there are fewer.

    Raises:
        ValueError: a number outside its range.
    """

    name = "gen"
    title = "GEN"

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.gamma = gamma
        self.top = top

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.double().log_softmax(-1).sort(dim=-1, descending=True).values
        others = log_probs[:, 1:]
        # 1 - p from what the others have: a small power magnifies the digits that a difference near p = 1 loses.
        log_complements = torch.cat([others.logsumexp(-1, keepdim=True), torch.log(-others.expm1())], dim=-1)
        return -(self.gamma * (log_probs + log_complements)[:, : self.top]).exp().sum(-1)
