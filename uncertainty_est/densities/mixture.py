"""Trainable mixtures of Gaussians, one for each class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from uncertainty_est.densities.base import ClassDensities, check_positive

_SMALLEST_SCALE = 1e-3  # of the Cholesky factor's diagonal


class GaussianMixtures(ClassDensities):
    r"""A mixture of M Gaussians with full covariances for each class, :math:`p(z \mid c) = \sum_m \pi_{cm} \mathcal N`.

    Weights are a softmax over the components (a density, unlike the original, whose weights were all one), Cholesky
    factors have an exponentiated diagonal plus 1e-3. Means start uniform in :math:`\pm 1/\sqrt D`.

    References:
        The density of the Segment experiment of Charpentier et al., arXiv:2006.09239.

    Args:
        num_classes: C.
        dim: D.
        num_components: M.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, num_classes: int, dim: int, num_components: int = 6) -> None:
        super().__init__(num_classes, dim)
        check_positive(num_components=num_components)
        bound = 1 / math.sqrt(dim)
        self.logits = nn.Parameter(torch.zeros(num_classes, num_components))
        self.mean = nn.Parameter(torch.empty(num_classes, num_components, dim).uniform_(-bound, bound))
        self.raw_tril = nn.Parameter(torch.empty(num_classes, num_components, dim, dim).uniform_(-bound, bound))

    def log_prob(self, z: Tensor) -> Tensor:
        diagonal = self.raw_tril.diagonal(dim1=-2, dim2=-1).exp() + _SMALLEST_SCALE
        scale_tril = self.raw_tril.tril(-1) + torch.diag_embed(diagonal)
        mixture = MixtureSameFamily(
            Categorical(logits=self.logits, validate_args=False),
            MultivariateNormal(self.mean, scale_tril=scale_tril, validate_args=False),
            validate_args=False,
        )
        return mixture.log_prob(z.unsqueeze(1))
