"""ODIN of a classifier that was not trained as one."""

from __future__ import annotations

from torch import Tensor

from uncertainty_est.losses.outlier import max_log_prob
from uncertainty_est.measures import tempered_confidence
from uncertainty_est.posthoc.base import PerturbedScore


class ODIN(PerturbedScore):
    r"""Tempered confidence :math:`\max_c \mathrm{softmax}_c(f / T)` in [1/C, 1], at an input moved to more of it.

    References:
        Liang et al., arXiv:1706.02690, Eq. 1 and 2.

    Args:
        temperature: T.
        epsilon: length of the step, in pixels of [0, 1].

    Raises:
        ValueError: a temperature that is not positive, or a negative epsilon.
    """

    name = "odin"
    title = "ODIN, post-hoc"

    def __init__(self, temperature: float = 1000.0, epsilon: float = 0.0014) -> None:
        super().__init__(epsilon)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def raised(self, features: Tensor, logits: Tensor) -> Tensor:
        return max_log_prob(logits / self.temperature)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return tempered_confidence(logits, self.temperature)
