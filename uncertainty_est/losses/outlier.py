"""Losses that tell a classifier's outliers from its data."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def energy_hinge(energy_in: Tensor, energy_out: Tensor, margin_in: float, margin_out: float) -> tuple[Tensor, Tensor]:
    r"""Squared hinges on energies :math:`E(x) = -\mathrm{lse} f(x)`, which are low where the density is high.

    .. math:: \operatorname{mean} \max(0, E_{\text{in}} - m_{\text{in}})^2, \quad
        \operatorname{mean} \max(0, m_{\text{out}} - E_{\text{out}})^2

    Data whose energy is above :math:`m_{\text{in}}` are pushed down, outliers below :math:`m_{\text{out}}` up; where
    the margins are met both are zero, with zero gradient.

    References:
        Liu et al., arXiv:2010.03759, Eq. 8 and 9.

    Args:
        energy_in: energies of data, ``[B]``.
        energy_out: energies of outliers, ``[B']``.
        margin_in: the energy that data should not exceed.
        margin_out: the energy that outliers should not fall below.

    Returns:
        Two scalars, of data and of outliers.
    """
    return F.relu(energy_in - margin_in).square().mean(), F.relu(margin_out - energy_out).square().mean()


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    r"""Cross-entropy of the uniform distribution and softmax f, :math:`\mathrm{lse} f - \tfrac1C \sum_c f_c`, ``[B]``.

    It equals :math:`\ln C + \mathrm{KL}(U \| \mathrm{softmax} f)`: least, :math:`\ln C`, where all logits are equal.
    As a loss on outliers it flattens predictions; as a score it is high for confident ones.

    References:
        Hendrycks et al., arXiv:1812.04606, Eq. 1 and section 4.3.

    Args:
        logits: ``[B, C]``.
    """
    return logits.logsumexp(-1) - logits.mean(-1)


def entropy_margin(logits_in: Tensor, logits_out: Tensor, margin: float) -> Tensor:
    r"""Hinge on mean entropies, :math:`\max(0, m + \bar H_{\text{in}} - \bar H_{\text{out}})`, a scalar.

    :math:`\bar H` is the mean over the batch of the entropy of softmax f. Where it is larger by m on outliers than on
    data, the hinge is zero, with zero gradient: outliers are not flattened without end.

    References:
        Vyas et al., arXiv:1809.03576, Section 3.

    Args:
        logits_in: of data, ``[B, C]``.
        logits_out: of outliers, ``[B', C]``.
        margin: m.
    """
    return F.relu(margin + softmax_entropy(logits_in).mean() - softmax_entropy(logits_out).mean())


def softmax_entropy(logits: Tensor) -> Tensor:
    r"""Entropy of softmax f in nats, ``[B]`` in :math:`[0, \ln C]`, of ``f: [B, C]``, with a gradient also at p = 0."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def max_log_prob(logits: Tensor) -> Tensor:
    r"""Logarithm of the confidence, :math:`\max_c \ln \mathrm{softmax}_c f = \max_c f_c - \mathrm{lse} f`, ``[B]``.

    It lies in :math:`[-\ln C, 0]`: least where all logits are equal.

    References:
        Hein et al., arXiv:1812.05720, Section 4.

    Args:
        logits: ``[B, C]``.
    """
    return logits.amax(-1) - logits.logsumexp(-1)


# Losses of an outlier's logits that grow with confidence, ``[B, C] -> [B]``.
CONFIDENCE_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"max": max_log_prob, "uniform": uniform_cross_entropy}
