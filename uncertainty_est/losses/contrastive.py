"""Losses that learn a log-density by telling data from something of known density."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def noise_contrastive(logit_data: Tensor, logit_noise: Tensor) -> Tensor:
    r"""Mean binary cross-entropy of telling data from noise, a scalar.

    .. math:: \tfrac1{B + N} \Bigl[ \sum_{i=1}^B \mathrm{softplus}(-G(x_i))
        + \sum_{j=1}^N \mathrm{softplus}(G(n_j)) \Bigr], \quad G = F - \ln p_n - \ln \tfrac N B

    It is least where F is the normalised log-density of the data, and :math:`\ln 2` for one sample of noise each
    where F is that of the noise.

    References:
        Gutmann and Hyvärinen, JMLR 13 (2012), Eq. 8.

    Args:
        logit_data: :math:`F - \ln p_n` of data, ``[B]``.
        logit_noise: the same of noise, ``[N]``.
    """
    shift = math.log(len(logit_noise) / len(logit_data))
    total = F.softplus(shift - logit_data).sum() + F.softplus(logit_noise - shift).sum()
    return total / (len(logit_data) + len(logit_noise))


def conditional_noise_contrastive(log_ratio: Tensor) -> Tensor:
    r""":math:`\mathrm{softplus}(-(F(x) - F(x')))` of data x and their disturbed copies x', ``[B]``.

    The disturbance is symmetric, :math:`p(x' \mid x) = p(x \mid x')`, so that its density cancels; so does every
    constant in F.

    References:
        Ceylan and Gutmann, arXiv:1806.03664, Eq. 8 and 13 (half of it).

    Args:
        log_ratio: :math:`F(x) - F(x')`, ``[B]``.
    """
    return F.softplus(-log_ratio)
