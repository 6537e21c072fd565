"""Losses of networks whose output is a Dirichlet distribution over class probabilities.

All take concentrations ``alpha: [B, C]``, all positive, compute in float64 (differences of digammas of large arguments
cancel in float32) and return one value for each sample, so that the caller chooses the reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uncertainty_est.measures import digamma_difference


def dirichlet_kl(alpha: Tensor, beta: Tensor) -> Tensor:
    r"""Divergence :math:`\mathrm{KL}(\mathrm{Dir}(\alpha) \| \mathrm{Dir}(\beta))` in nats, ``[B]`` float64.

    .. math:: \ln\Gamma(\alpha_0) - \ln\Gamma(\beta_0) + \sum_c \bigl[ \ln\Gamma(\beta_c) - \ln\Gamma(\alpha_c)
        + (\alpha_c - \beta_c)(\psi(\alpha_c) - \psi(\alpha_0)) \bigr]

    Args:
        alpha: ``[B, C]``, positive.
        beta: ``[B, C]`` or what broadcasts to it, positive.
    """
    alpha, beta = torch.broadcast_tensors(alpha.double(), beta.double())
    alpha0, beta0 = alpha.sum(-1), beta.sum(-1)
    per_class = beta.lgamma() - alpha.lgamma() + (alpha - beta) * digamma_difference(alpha, alpha0)
    return alpha0.lgamma() - beta0.lgamma() + per_class.sum(-1)


def expected_cross_entropy(alpha: Tensor, y: Tensor) -> Tensor:
    r"""Uncertain cross-entropy, the expectation of :math:`-\ln p_y` under Dir(alpha).

    .. math:: \mathbb E_{p \sim \mathrm{Dir}(\alpha)}[-\ln p_y] = \psi(\alpha_0) - \psi(\alpha_y)

    References:
        Charpentier et al., arXiv:2006.09239, Eq. 7 (without its entropy term).

    Args:
        alpha: ``[B, C]``, positive.
        y: ``[B]`` labels in ``0 … C-1``.

    Returns:
        ``[B]`` float64, positive.
    """
    alpha = alpha.double()
    alpha_y = alpha.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return -digamma_difference(alpha_y.unsqueeze(-1), alpha.sum(-1)).squeeze(-1)


def uncertain_cross_entropy(alpha: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two terms of the uncertain cross-entropy loss from one evaluation of the gamma functions.

    :func:`expected_cross_entropy` and the differential entropy of Dir(alpha), written for speed: differences of
    digammas are exact to about 1e-14 here, whatever alpha, where the functions of their own keep relative accuracy.

    References:
        Charpentier et al., arXiv:2006.09239, Eq. 7.

    Args:
        alpha: ``[B, C]``, positive.
        y: ``[B]`` labels in ``0 … C-1``.

    Returns:
        Expected cross-entropy ``[B]`` and entropy ``[B]``, float64, in nats.
    """
    alpha = alpha.double()
    with_total = torch.cat([alpha, alpha.sum(-1, keepdim=True)], dim=-1)
    psi, log_gamma = with_total.digamma(), with_total.lgamma()
    difference = psi[:, :-1] - psi[:, -1:]
    cross_entropy = -difference.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    entropy = log_gamma[:, :-1].sum(-1) - log_gamma[:, -1] - ((alpha - 1) * difference).sum(-1)
    return cross_entropy, entropy


def expected_brier(alpha: Tensor, y: Tensor) -> Tensor:
    r"""Expected squared error :math:`\mathbb E_{p \sim \mathrm{Dir}(\alpha)} \|\mathrm{onehot}(y) - p\|^2`.

    .. math:: \sum_c (y_c - \bar p_c)^2 + \frac{\bar p_c (1 - \bar p_c)}{\alpha_0 + 1}, \quad \bar p = \alpha / \alpha_0

    References:
        Sensoy et al., arXiv:1806.01768, Eq. 5.

    Args:
        alpha: ``[B, C]``, positive.
        y: ``[B]`` labels in ``0 … C-1``.

    Returns:
        ``[B]`` float64 in [0, 2].
    """
    alpha = alpha.double()
    alpha0 = alpha.sum(-1, keepdim=True)
    mean = alpha / alpha0
    target = torch.nn.functional.one_hot(y, alpha.shape[-1]).to(mean)
    return ((target - mean).square() + mean * (1 - mean) / (alpha0 + 1)).sum(-1)
