"""Prediction of a classifier's loss, learned on data that it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uncertainty_est.error_prediction.features import DEFAULT_FEATURES, ErrorFeatures
from uncertainty_est.error_prediction.folds import held_out_by_fold, rows_of_fold, stacked
from uncertainty_est.error_prediction.predictor import ErrorPredictor
from uncertainty_est.errors import DataError
from uncertainty_est.posthoc.base import PosthocScore


class ErrorPrediction(PosthocScore):
    r"""Negative predicted loss, :math:`-g(\phi(z, f))`, with features :math:`\phi` of density and logits.

    g learns the classifier's losses on the validation split from the features of
    :class:`~uncertainty_est.error_prediction.features.ErrorFeatures`. Their densities are of the other folds of that
    split, which have not seen the sample, and for new inputs of all folds but the first. A checkpoint that was selected
    on the split has losses there that are a little smaller than those to come.

    References:
        Lahlou et al., arXiv:2102.08501, Algorithm 1.

    Args:
        folds: of the densities, at least 2.
        min_jitter: smallest number added to the densities' covariances.
        seed: of folds and predictor.

    Raises:
        ValueError: fewer than 2 folds, or a negative jitter.
    """

    name = "deup"
    title = "DEUP, post-hoc"
    split = "val"

    def __init__(self, folds: int = 5, min_jitter: float = 1e-6, seed: int = 1) -> None:
        if folds < 2 or not min_jitter >= 0:
            raise ValueError(f"folds must be at least 2 and min_jitter at least 0, got {folds} and {min_jitter}")
        self.folds = folds
        self.min_jitter = min_jitter
        self.seed = seed
        self._describe: ErrorFeatures | None = None
        self._predictor: ErrorPredictor | None = None

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        """See :meth:`PosthocScore.fit`.

        Raises:
            DataError: fewer samples than folds, or no class with 2 samples.
        """
        if len(labels) < self.folds:
            raise DataError(
                f"deup: {len(labels)} samples have no {self.folds} folds; choose a smaller --scores deup:folds="
            )
        classes, dim, outputs = logits.shape[-1], features.shape[-1], {"features": features, "logits": logits}

        masks = held_out_by_fold(labels, self.folds, "stratified", torch.Generator().manual_seed(self.seed))
        of_folds = [
            ErrorFeatures(DEFAULT_FEATURES, dim, classes, min_jitter=self.min_jitter).to(features.device) for _ in masks
        ]
        parts = [rows_of_fold(mask, labels, lambda _: outputs, of) for mask, of in zip(masks, of_folds, strict=True)]
        rows = stacked(parts)
        predictor = ErrorPredictor(rows.features.shape[-1]).to(features.device)
        predictor.fit(rows.features, rows.errors, rows.samples, seed=self.seed)
        self._describe, self._predictor = of_folds[0], predictor

    @torch.no_grad()
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        described = self.require(self._describe)({"features": features, "logits": logits})
        return -self.require(self._predictor)(described)
