"""Agreement of features with the mean features of the predicted class."""

from __future__ import annotations

from torch import Tensor, nn

from uncertainty_est.errors import DataError
from uncertainty_est.posthoc.base import PosthocScore


class SHE(PosthocScore):
    r"""Simplified Hopfield energy, :math:`z^\top S_{\hat y}` with the predicted class :math:`\hat y`.

    :math:`S_c` is the mean of the features of the training inputs of class c that are predicted as c.

    References:
        Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
        Hopfield Energy", ICLR 2023.
    """

    name = "she"
    title = "SHE"
    split = "train"

    def __init__(self) -> None:
        self._patterns: Tensor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        """See :meth:`PosthocScore.fit`.

        Raises:
            DataError: a class has no training input that is predicted as it.
        """
        right = logits.argmax(-1) == labels
        features, labels = features[right].double(), labels[right]
        count = labels.bincount(minlength=logits.shape[-1])
        if not count.all():
            absent = int((count == 0).nonzero()[0])
            raise DataError(f"she: no training input of class {absent} is predicted as it, so it has no mean features")
        sums = features.new_zeros(len(count), features.shape[-1]).index_add(0, labels, features)
        self._patterns = sums / count.unsqueeze(-1)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return (features.double() * self.require(self._patterns)[logits.argmax(-1)]).sum(-1)
