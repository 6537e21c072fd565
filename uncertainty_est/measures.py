"""Uncertainty measures of class probabilities, and the scores made of them.

The measures are uncertainties: larger means less certain. The functions named ``..._scores`` fix the sign,
here and nowhere else: every score is higher for inputs that look more in-distribution.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Largest logarithm of a concentration: exp of more is infinite in float32, in which scores are handed out.
LARGEST_LOG_ALPHA = 88.0


def entropy(probs: Tensor, dim: int = -1) -> Tensor:
    r"""Shannon entropy :math:`H[p] = -\sum_c p_c \ln p_c` in nats, with :math:`0 \ln 0 = 0`.

    Args:
        probs: probabilities of any shape and floating type, summing to one along `dim`.
        dim: the axis of the classes, which is summed over.

    Returns:
        Entropies in :math:`[0, \ln C]`, float64, without the axis `dim`.
    """
    return torch.special.entr(probs.double()).sum(dim)


def mutual_information(probs: Tensor) -> Tensor:
    r"""Mutual information of label and member, :math:`H[\bar p] - \tfrac1M \sum_m H[p_m]`, in nats.

    :math:`\bar p = \tfrac1M \sum_m p_m` is the mean of the members.

    Args:
        probs: ``[M, B, C]``, the probabilities of M members.

    Returns:
        ``[B]`` in :math:`[0, \ln \min(M, C)]`, float64; zero where all members agree.

    References:
        Depeweg et al., arXiv:1710.07283, Section 3.
    """
    probs = probs.double()
    # Jensen's inequality makes it non-negative; rounding alone can fall below.
    return (entropy(probs.mean(0)) - entropy(probs).mean(0)).clamp(min=0)


def logit_scores(logits: Tensor) -> dict[str, Tensor]:
    r"""Scores of a classifier from its logits f, higher = more in-distribution.

    ``max p(y|x)``: :math:`\max_c \mathrm{softmax}(f)_c`; ``p(x)``: :math:`\ln \sum_c e^{f_c}`, the negative
    free energy; ``Entropy``: :math:`-H[\mathrm{softmax}(f)]`; ``Max logit``: :math:`\max_c f_c`.

    Args:
        logits: ``[B, C]`` of any floating type.

    Returns:
        Scores ``[B]``, float32, finite for finite logits.

    References:
        Hendrycks and Gimpel, arXiv:1610.02136 (maximum probability).
        Liu et al., arXiv:2010.03759, Eq. 4 (energy).
        Hendrycks et al., arXiv:1911.11132 (maximum logit).
    """
    logits = logits.double()
    probs = logits.softmax(-1)
    scores = {
        "max p(y|x)": probs.amax(-1),
        "p(x)": logits.logsumexp(-1),
        "Entropy": -entropy(probs),
        "Max logit": logits.amax(-1),
    }
    return {name: score.float() for name, score in scores.items()}


def tempered_confidence(logits: Tensor, temperature: float | Tensor) -> Tensor:
    r""":math:`\max_c \mathrm{softmax}_c(f / T)`, ``[B]`` in [1/C, 1], of ``f: [B, C]``.

    In float64: at a high temperature all probabilities are equal to some digits.
    """
    return (logits.double() / temperature).softmax(-1).amax(-1)


def member_scores(probs: Tensor) -> dict[str, Tensor]:
    r"""Scores of M classifiers, or of M stochastic passes of one, higher = more in-distribution.

    With :math:`\bar p = \tfrac1M \sum_m p_m`, ``MI``: negative :func:`mutual_information`; ``Entropy``:
    :math:`-H[\bar p]`; ``Expected entropy``: :math:`-\tfrac1M \sum_m H[p_m]`; ``Variance``: negative unbiased variance
    over members, averaged over classes; ``max p(y|x)``: :math:`\max_c \bar p_c`.

    Args:
        probs: ``[M, B, C]`` of any floating type, M at least 2.

    Returns:
        Scores ``[B]``, float32.

    Raises:
        ValueError: fewer than 2 members.

    References:
        Lakshminarayanan et al., arXiv:1612.01474 (ensembles). Gal and Ghahramani, arXiv:1506.02142 (dropout).
    """
    if probs.ndim != 3 or len(probs) < 2:
        raise ValueError(f"probs must be [M, B, C] with at least 2 members, got {list(probs.shape)}")
    probs = probs.double()
    mean = probs.mean(0)
    scores = {
        "MI": -mutual_information(probs),
        "Entropy": -entropy(mean),
        "Expected entropy": -entropy(probs).mean(0),
        "Variance": -probs.var(0, correction=1).mean(-1),
        "max p(y|x)": mean.amax(-1),
    }
    return {name: score.float() for name, score in scores.items()}


def dirichlet_entropy(alpha: Tensor) -> Tensor:
    r"""Differential entropy of :math:`\mathrm{Dir}(\alpha)` in nats, ``[B]`` float64.

    .. math:: \sum_c \ln\Gamma(\alpha_c) - \ln\Gamma(\alpha_0) - \sum_c (\alpha_c - 1)(\psi(\alpha_c) - \psi(\alpha_0))

    It is largest, :math:`-\ln\Gamma(C)`, for the flat distribution :math:`\alpha = 1`.

    Args:
        alpha: ``[B, C]``, positive.
    """
    alpha = alpha.double()
    alpha0 = alpha.sum(-1)
    spread = (alpha - 1) * digamma_difference(alpha, alpha0)
    return alpha.lgamma().sum(-1) - alpha0.lgamma() - spread.sum(-1)


def digamma_difference(a: Tensor, total: Tensor) -> Tensor:
    r""":math:`\psi(a) - \psi(\text{total})` of ``a: [B, C]``, ``total: [B]``, also where both are huge.

    Above 1e6 the leading terms of the asymptotic series are exact to float64, and their logarithms are subtracted as
    one logarithm of a ratio: :math:`\ln(a/t) - (1/a - 1/t)/2 - (1/a^2 - 1/t^2)/12`.
    """
    total = total.unsqueeze(-1)
    large = a > 1e6
    # Both branches get harmless arguments where they are not used: their gradients must stay finite.
    small_a, small_total = a.where(~large, 1.0), total.expand_as(a).where(~large, 1.0)
    large_a, large_total = a.where(large, 1.0), total.expand_as(a).where(large, 1.0)
    series = (
        (large_a / large_total).log()
        - (1 / large_a - 1 / large_total) / 2
        - (1 / large_a.square() - 1 / large_total.square()) / 12
    )
    return torch.where(large, series, small_a.digamma() - small_total.digamma())


def dirichlet_scores(alpha: Tensor, headline: str = "MI") -> dict[str, Tensor]:
    r"""Scores of Dirichlet distributions over class probabilities, higher = more in-distribution.

    With :math:`\bar p = \alpha / \alpha_0`, ``max p(y|x)``: :math:`\max_c \bar p_c`; negative uncertainties ``MI``
    (distributional: ``Entropy`` minus ``Expected entropy``), ``Entropy`` (total: :math:`H[\bar p]`),
    ``Expected entropy`` (data: :math:`-\sum_c \bar p_c (\psi(\alpha_c + 1) - \psi(\alpha_0 + 1))`), ``EPKL``
    (expected pairwise divergence :math:`(C - 1) / \alpha_0`) and ``Differential entropy`` (of the Dirichlet itself);
    and the evidence ``log alpha0``.

    Args:
        alpha: ``[B, C]`` concentrations, positive and finite.
        headline: the score that stands first.

    Returns:
        Scores ``[B]``, float32.

    References:
        Malinin and Gales, arXiv:1802.10501, Section 3, and arXiv:1905.13472 (EPKL).
    """
    alpha = alpha.double()
    alpha0 = alpha.sum(-1)
    mean = alpha / alpha0.unsqueeze(-1)
    total = entropy(mean)
    expected = -(mean * digamma_difference(alpha + 1, alpha0 + 1)).sum(-1)
    scores = {
        "MI": -(total - expected).clamp(min=0),
        "max p(y|x)": mean.amax(-1),
        "Entropy": -total,
        "Expected entropy": -expected,
        "EPKL": -(alpha.shape[-1] - 1) / alpha0,
        "Differential entropy": -dirichlet_entropy(alpha),
        "log alpha0": alpha0.log(),
    }
    return {name: scores[name].float() for name in sorted(scores, key=lambda name: name != headline)}


def finite(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`scores` with NaN and -inf replaced by their type's most negative finite number, +inf by its largest.

    A NaN thereby counts as least in-distribution. One warning tells how many were replaced, by score.

    Args:
        scores: name to floating tensor of any shape, all on one device.
    """
    if not scores:
        return {}
    # One transfer from the device, whatever the number of scores.
    counts = torch.stack([(~score.isfinite()).sum() for score in scores.values()]).tolist()
    bad = {name: (count, scores[name].numel()) for name, count in zip(scores, counts, strict=True) if count}
    if not bad:
        return dict(scores)
    log.warning(
        "replaced scores that are not finite: %s",
        ", ".join(f"{count} of {total} in '{name}'" for name, (count, total) in bad.items()),
    )
    return {name: _replace(score) if name in bad else score for name, score in scores.items()}


def _replace(score: Tensor) -> Tensor:
    limits = torch.finfo(score.dtype)
    return score.nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
