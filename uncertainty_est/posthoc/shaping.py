"""Energies of logits that the last layer gives for features, or by weights, which were shaped before."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.posthoc.base import PosthocScore


def checked_percentile(percentile: float) -> float:
    """`percentile`, if it lies in [0, 100).

    Raises:
        ValueError: it does not.
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must lie in [0, 100), got {percentile}")
    return percentile


def quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of all `values`, interpolated linearly, a scalar; like ``torch.quantile``, but of any number of values.

    Args:
        values: of any shape, not empty.
        q: in [0, 1].
    """
    flat = values.flatten()
    position = q * (len(flat) - 1)
    low = int(position)
    first = flat.kthvalue(low + 1).values
    if low + 1 == len(flat):
        return first
    return first.lerp(flat.kthvalue(low + 2).values, position - low)


class ShapedEnergy(PosthocScore):
    r"""Base of scores :math:`\ln \sum_c e^{f'_c}` with logits :math:`f' = W s(z) + b` of shaped features s(z)."""

    def __init__(self) -> None:
        self._head: nn.Module | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        self._head = head

    @abstractmethod
    def shaped(self, features: Tensor) -> Tensor:
        """s(z), ``[B, D]``, of features ``z: [B, D]``."""

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.require(self._head)(self.shaped(features)).double().logsumexp(-1)


class ReAct(ShapedEnergy):
    r"""Energy after clipping, :math:`s(z) = \min(z, c)`, c a percentile of all training features together.

    References:
        Sun et al., arXiv:2111.12797, Section 3.

    Args:
        percentile: of c.

    Raises:
        ValueError: a percentile outside [0, 100).
    """

    name = "react"
    title = "ReAct"
    split = "train"

    def __init__(self, percentile: float = 90.0) -> None:
        super().__init__()
        self.percentile = checked_percentile(percentile)
        self._threshold: Tensor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        super().fit(features, logits, labels, head)
        self._threshold = quantile(features, self.percentile / 100)

    def shaped(self, features: Tensor) -> Tensor:
        return torch.minimum(features, self.require(self._threshold))


class LargestFeatures(ShapedEnergy):
    r"""Base of scores that keep the largest features of each input: with the sum :math:`s_1` and theirs :math:`s_2`.

    Made for features that are not negative, such as those after a ReLU.

    Args:
        percentile: of the features that are not among the largest.

    Raises:
        ValueError: a percentile outside [0, 100).
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = checked_percentile(percentile)

    def largest(self, features: Tensor) -> torch.return_types.topk:
        """Values and positions ``[B, K]`` of the K largest features, at least one."""
        dim = features.shape[-1]
        return features.topk(max(1, dim - round(dim * self.percentile / 100)), dim=-1)

    @staticmethod
    def ratio(features: Tensor, kept: Tensor) -> Tensor:
        """:math:`s_1 / s_2`, ``[B, 1]``, and 1 where nothing is above 0."""
        total, part = features.sum(-1, keepdim=True), kept.sum(-1, keepdim=True)
        return torch.where(part > 0, total / part, 1.0)


class ASH(LargestFeatures):
    r"""Energy after activation shaping: features below each input's percentile are 0, the others change.

    ``s``: they are scaled by :math:`e^{s_1 / s_2}`; ``p``: they stay as they are; ``b``: the K of them that are above 0
    become :math:`s_1 / K`.

    References:
        Djurisic et al., arXiv:2209.09858, Section 3.

    Args:
        percentile: of the features that become 0.
        variant: ``"s"``, ``"p"`` or ``"b"``.

    Raises:
        ValueError: another variant, or a percentile outside [0, 100).
    """

    name = "ash"
    title = "ASH"

    def __init__(self, percentile: float = 90.0, variant: str = "s") -> None:
        super().__init__(percentile)
        if variant not in ("s", "p", "b"):
            raise ValueError(f"variant must be one of 's', 'p', 'b', got '{variant}'")
        self.variant = variant

    def shaped(self, features: Tensor) -> Tensor:
        kept, where = self.largest(features)
        if self.variant == "s":
            new = kept * self.ratio(features, kept).exp()
        elif self.variant == "b":
            positive = kept > 0
            new = positive * features.sum(-1, keepdim=True) / positive.sum(-1, keepdim=True).clamp(min=1)
        else:
            new = kept
        return torch.zeros_like(features).scatter(-1, where, new)


class SCALE(LargestFeatures):
    r"""Energy of features scaled by :math:`e^{s_1 / s_2}`, none of which becomes 0.

    References:
        Xu et al., arXiv:2310.00227, Section 4.

    Args:
        percentile: of the features that are left out of :math:`s_2`.

    Raises:
        ValueError: a percentile outside [0, 100).
    """

    name = "scale"
    title = "SCALE"

    def __init__(self, percentile: float = 85.0) -> None:
        super().__init__(percentile)

    def shaped(self, features: Tensor) -> Tensor:
        return features * self.ratio(features, self.largest(features).values).exp()


class DICE(PosthocScore):
    r"""Energy of logits by the weights of the last layer that contribute most on training data, all others 0.

    Weight :math:`W_{cd}` contributes :math:`W_{cd}\, \bar z_d`, with the mean :math:`\bar z` of the training features.

    References:
        Sun and Li, arXiv:2111.09805, Section 3.

    Args:
        percentile: of all weights' contributions, up to which they become 0.

    Raises:
        ValueError: a percentile outside [0, 100).
    """

    name = "dice"
    title = "DICE"
    split = "train"

    def __init__(self, percentile: float = 90.0) -> None:
        self.percentile = checked_percentile(percentile)
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        weight = head.get_parameter("weight").detach()
        contribution = weight * features.mean(0)
        self._weight = weight.where(contribution > quantile(contribution, self.percentile / 100), 0.0)
        bias = head.bias
        self._bias = bias.detach() if isinstance(bias, Tensor) else None

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return F.linear(features, self.require(self._weight), self._bias).double().logsumexp(-1)
