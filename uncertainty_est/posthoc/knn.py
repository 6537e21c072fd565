"""Distance to the k-th nearest training features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.errors import DataError
from uncertainty_est.posthoc.base import PosthocScore

# Similarities at once: 64 MB in float32.
_CHUNK = 2**24


class KNN(PosthocScore):
    r"""Negative distance :math:`-\| \hat z - \hat z_{(k)} \| \in [-2, 0]` to the k-th nearest training features.

    Features are divided by their length, :math:`\hat z = z / \| z \|`. Neighbours are found by one matrix product, and
    the distance to the k-th is then taken of the difference, which keeps the digits of small ones.

    References:
        Sun et al., arXiv:2204.06507, Algorithm 1.

    Args:
        k: 50 is the paper's for ten classes, 200 for a hundred.

    Raises:
        ValueError: k below 1.
    """

    name = "knn"
    title = "kNN"
    split = "train"

    def __init__(self, k: int = 50) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self._bank: Tensor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        """See :meth:`PosthocScore.fit`.

        Raises:
            DataError: fewer than k training inputs.
        """
        if len(features) < self.k:
            raise DataError(
                f"knn: {len(features)} training inputs have no {self.k}th nearest one; choose a smaller --scores knn:k="
            )
        self._bank = F.normalize(features, dim=-1)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        bank = self.require(self._bank)
        parts = F.normalize(features, dim=-1).split(max(1, _CHUNK // len(bank)))
        return torch.cat([self._distances(part, bank) for part in parts]).neg()

    def _distances(self, z: Tensor, bank: Tensor) -> Tensor:
        kth = (z @ bank.T).topk(self.k, dim=-1).indices[:, -1]
        return (z - bank[kth]).norm(dim=-1)
