"""The gradient that a uniform target would give the last layer."""

from __future__ import annotations

from torch import Tensor

from uncertainty_est.posthoc.base import PosthocScore


class GradNorm(PosthocScore):
    r"""Norm of the last layer's gradient towards a uniform prediction, large where a prediction is peaked.

    With :math:`p = \mathrm{softmax}(f / T)` and :math:`f = W z + b`, in closed form and without a pass back,

    .. math:: \Bigl\| \frac{\partial}{\partial W} \mathrm{KL}(U \| p) \Bigr\|_1
        = \tfrac1T \sum_c \bigl| p_c - \tfrac1C \bigr| \sum_d |z_d| \ge 0

    References:
        Huang et al., arXiv:2110.00218, Section 3.

    Args:
        temperature: T.

    Raises:
        ValueError: a temperature that is not positive.
    """

    name = "gradnorm"
    title = "GradNorm"

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        from_uniform = (logits.double() / self.temperature).softmax(-1) - 1 / logits.shape[-1]
        return from_uniform.abs().sum(-1) * features.double().abs().sum(-1) / self.temperature
