"""Deep Deterministic Uncertainty: density of a Gaussian discriminant analysis on a classifier's features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics
from uncertainty_est.models.base import Prediction, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network


class DDU(CEBaseline):
    r"""Softmax classifier whose epistemic score is the density of its features under one Gaussian a class.

    .. math:: q(z) = \sum_c \pi_c\, \mathcal N(z; \mu_c, \Sigma_c), \quad z = \text{features}(x)

    Scores: ``gmm_log_density`` (:math:`\log q(z)`, the headline), ``gmm_entropy`` (negative entropy of the class
    posterior under q), then the classifier's own; its ``Entropy`` is the paper's aleatoric score. The loss is plain
    cross-entropy; residual connections and spectral normalisation of the network keep features distance-aware.

    References:
        Mukhoti et al., arXiv:2102.11582, Algorithm 1.

    Args:
        network: a residual network with ``layers`` = :class:`~uncertainty_est.networks.lipschitz.SpectralLayers`.
        min_jitter: smallest number added to every covariance's diagonal; the search for one that works starts there.
            0 is the reference's; with fewer samples of a class than features, some directions then have no variance.
    """

    posthoc_split = "train"

    def __init__(
        self,
        network: Network,
        min_jitter: float = 0.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        self.density = ClassGaussians(network.head.out_features, network.feature_dim, min_jitter)
        self.keep_from_ddp("density")

    def fit_posthoc(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the class Gaussians by streaming sufficient statistics, merged over DDP ranks: one pass, exact."""
        statistics = GaussianStatistics(self.network.head.out_features, self.network.feature_dim, device=self.device)
        with scoring_mode(self):
            for x, y in loader:
                statistics.update(self.outputs(x)["features"], y)
        statistics.all_reduce()
        self.density.fit(statistics)

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        classifier = super().predict_from(outputs)
        joint = self.density.log_prob(outputs["features"]) + self.density.log_prior
        scores = {
            "gmm_log_density": joint.logsumexp(-1),
            "gmm_entropy": -measures.entropy(joint.softmax(-1)),
        }
        return Prediction(classifier.probs, scores | classifier.scores)
