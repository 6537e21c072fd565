"""Virtual logit matching: what features have outside the principal subspace, as one more logit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uncertainty_est.errors import DataError
from uncertainty_est.posthoc.base import PosthocScore


class ViM(PosthocScore):
    r"""Energy of the logits less a virtual logit, :math:`\ln \sum_c e^{f_c} - \alpha \| R^\top (z - u) \|`.

    The origin u gives zero logits, :math:`u = -W^+ b`. R spans what the principal subspace of the training features
    about u leaves over, and :math:`\alpha` makes the mean virtual logit of the training data equal to the mean of
    their largest logits. Subspaces are computed in float64.

    References:
        Wang et al., arXiv:2203.10807, Section 4.

    Args:
        dim: dimensions of the principal subspace; 0 for the paper's 1000 of 2048 features or more, 512 of 768 or more,
            and half the features otherwise.

    Raises:
        ValueError: a negative dimension.
    """

    name = "vim"
    title = "ViM"
    split = "train"

    def __init__(self, dim: int = 0) -> None:
        if dim < 0:
            raise ValueError(f"dim must be at least 0, got {dim}")
        self.dim = dim
        self._rest: Tensor | None = None
        self._origin: Tensor | None = None
        self._alpha: Tensor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        """See :meth:`PosthocScore.fit`.

        Raises:
            DataError: no dimension is left over, or the training features have nothing in those that are.
        """
        total = features.shape[-1]
        dim = self.dim or (1000 if total >= 2048 else 512 if total >= 768 else total // 2)
        if dim >= total:
            raise DataError(f"vim: of {total} features none is left beside {dim}; choose a smaller --scores vim:dim=")
        weight = head.get_parameter("weight").detach().double()
        bias = head.bias.detach().double() if isinstance(head.bias, Tensor) else weight.new_zeros(len(weight))
        self._origin = -torch.linalg.pinv(weight) @ bias
        centred = features.double() - self._origin
        # Ascending eigenvalues: the first directions are those with the least of the data.
        self._rest = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, : total - dim].contiguous()
        residual = (centred @ self._rest).norm(dim=-1).mean()
        if residual <= 1e-7 * centred.norm(dim=-1).mean():
            raise DataError(
                f"vim: the training features lie within {dim} dimensions, which leaves nothing to compare with; choose"
                f" a smaller --scores vim:dim="
            )
        self._alpha = logits.double().amax(-1).mean() / residual

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        rest = (features.double() - self.require(self._origin)) @ self.require(self._rest)
        return logits.double().logsumexp(-1) - self.require(self._alpha) * rest.norm(dim=-1)
