"""Uncertainty measures of class probabilities, and the scores made of them.

The measures are uncertainties: larger means less certain. The functions named ``..._scores`` fix the sign,
here and nowhere else: every score is higher for inputs that look more in-distribution.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)


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


def member_scores(probs: Tensor) -> dict[str, Tensor]:
    r"""Scores of M classifiers, or of M stochastic passes of one, higher = more in-distribution.

    With :math:`\bar p = \tfrac1M \sum_m p_m`, ``MI``: negative :func:`mutual_information`; ``Entropy``:
    :math:`-H[\bar p]`; ``Variance``: negative unbiased variance over members, averaged over classes;
    ``max p(y|x)``: :math:`\max_c \bar p_c`.

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
        "Variance": -probs.var(0, correction=1).mean(-1),
        "max p(y|x)": mean.amax(-1),
    }
    return {name: score.float() for name, score in scores.items()}


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
