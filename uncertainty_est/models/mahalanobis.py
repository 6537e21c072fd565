"""Mahalanobis distances of a classifier's features to the means of the classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from uncertainty_est.densities.gaussian import GaussianStatistics, TiedGaussians
from uncertainty_est.errors import NotFittedError
from uncertainty_est.models.base import Prediction, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.raw_units import RawUnits
from uncertainty_est.models.tuning import Loader, candidates, collect, mean_auroc
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.ascent import ascending_step
from uncertainty_est.samplers.sgld import value_and_gradient

log = logging.getLogger(__name__)

# What the paper chooses from.
EPSILONS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)

LAYERS = ("last", "all")
COMBINATIONS = ("equal", "regression")


class Mahalanobis(CEBaseline):
    r"""Softmax classifier scored by the distance of its features to the nearest class, in their tied covariance.

    .. math:: M_l(x) = -\min_c (z_l - \mu_{lc})^\top \Sigma_l^{-1} (z_l - \mu_{lc}), \quad
        S(x) = \sum_l w_l M_l\bigl(x + \tfrac{\epsilon}{s}\, \mathrm{sign} \nabla_x M_l(x)\bigr)

    with the features :math:`z_l` of the layers l, means over the image of what the network's stages put out, and the
    standard deviations s of the transform, so that :math:`\epsilon` is in units of pixels in [0, 1]. Each layer has a
    perturbed input of its own.

    Scores: ``Mahalanobis`` (S, the headline), then the classifier's own, at x. Training is the classifier's. A
    prediction is one pass through the network; with an epsilon above 0, two forward and one back more for each layer.

    References:
        Lee et al., arXiv:1807.03888, Eq. 1 to 3 and Algorithm 1.

    Args:
        network: logits and features of ``[B, *data_shape]``.
        data_shape: shape of one input.
        layers: ``"last"``, the penultimate layer alone, or ``"all"`` stages.
        combination: the weights w: ``"equal"``, or of a logistic ``"regression"`` that tells the validation split from
            ``fixed.val_ood_datasets``, fitted to every other input.
        epsilon: :math:`\epsilon`; a list, or ``None`` for the paper's, to choose from on ``fixed.val_ood_datasets`` by
            the largest mean AUROC, of the inputs that no regression was fitted to.
        min_jitter: smallest number added to the covariances' diagonals; the search for one that works starts there.
        std: of the transform, for each channel or one; 1 for tables.

    Raises:
        ValueError: unknown layers or combination, or a number outside its range.
    """

    posthoc_split = "train"
    epsilon: Tensor
    weights: Tensor

    def __init__(
        self,
        network: Network,
        data_shape: Sequence[int],
        layers: str = "last",
        combination: str = "equal",
        epsilon: float | Sequence[float] | None = 0.0,
        min_jitter: float = 0.0,
        std: float | Sequence[float] = 1.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        for key, value, known in (("layers", layers, LAYERS), ("combination", combination, COMBINATIONS)):
            if value not in known:
                raise ValueError(f"{key} must be one of {', '.join(map(repr, known))}, got '{value}'")
        self.epsilons = candidates(epsilon, EPSILONS)
        if not (self.epsilons and min(self.epsilons) >= 0):
            raise ValueError(f"epsilon must be at least 0, got {self.epsilons}")
        self.layers = layers
        self.combination = combination
        self.needs_val_ood = combination == "regression" or len(self.epsilons) > 1
        self.units = RawUnits(std=std)
        with scoring_mode(network):
            self.dims = [z.shape[1] for z in self._stages(torch.zeros(1, *data_shape))]
        self.densities = nn.ModuleList(TiedGaussians(network.head.out_features, dim, min_jitter) for dim in self.dims)
        self.register_buffer("weights", torch.full((len(self.dims),), 1 / len(self.dims), dtype=torch.float64))
        start = torch.nan if self.needs_val_ood else self.epsilons[0]
        self.register_buffer("epsilon", torch.tensor(start, dtype=torch.float64))
        self.keep_from_ddp("densities")

    def fit_posthoc(self, loader: Loader) -> None:
        """Fit means and covariances by streaming sufficient statistics, merged over DDP ranks: one pass, exact."""
        classes = self.network.head.out_features
        statistics = [GaussianStatistics(classes, dim, device=self.device) for dim in self.dims]
        with scoring_mode(self), torch.autocast(self.device.type, enabled=False):
            for x, y in loader:
                for of_layer, z in zip(statistics, self._stages(x), strict=True):
                    of_layer.update(z, y)
        for layer, of_layer in enumerate(statistics):
            of_layer.all_reduce()
            self._density(layer).fit(of_layer)

    def tune(self, loader: Loader, ood_loaders: Mapping[str, Loader]) -> None:
        """Choose epsilon, and fit the layers' weights; of equal epsilons the first, in the order given."""
        with scoring_mode(self):
            known = collect(self._all_scores, loader)
            unknown = {name: collect(self._all_scores, ood_loader) for name, ood_loader in ood_loaders.items()}
        weights = self.weights.cpu().expand(len(self.epsilons), -1)
        if self.combination == "regression":
            outliers = torch.cat([scores[::2] for scores in unknown.values()])
            pairs = zip(known[::2].unbind(1), outliers.unbind(1), strict=True)
            weights = torch.stack([regression(*pair) for pair in pairs])
            known, unknown = known[1::2], {name: scores[1::2] for name, scores in unknown.items()}
        aurocs = mean_auroc((known * weights).sum(-1), {n: (scores * weights).sum(-1) for n, scores in unknown.items()})
        best = int(aurocs.argmax())
        log.info("Mahalanobis: epsilon %g, weights %s", self.epsilons[best], weights[best].tolist())
        self.epsilon.fill_(self.epsilons[best])
        self.weights.copy_(weights[best])

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """As the classifier's, and ``layer_scores [B, L]``, :math:`M_l` at its own perturbed input, float64.

        Raises:
            NotFittedError: nothing is fitted, or epsilon is not chosen.
        """
        epsilon = float(self.epsilon)
        if epsilon != epsilon:
            raise NotFittedError("Mahalanobis has no epsilon: call tune or load a finished run")
        # Distances, and the signs of their gradients even more, have no digits in half precision.
        with torch.autocast(x.device.type, enabled=False):
            stages = self._stages(x.float())
            if epsilon:
                scores = self._scores(x.float(), [epsilon])[:, 0]
            else:
                scores = torch.stack([self._score_of(layer, z) for layer, z in enumerate(stages)], -1)
            return {"features": stages[-1], "logits": self.network.head(stages[-1]), "layer_scores": scores}

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        classifier = super().predict_from(outputs)
        score = (outputs["layer_scores"] * self.weights).sum(-1)
        return Prediction(classifier.probs, {"Mahalanobis": score} | classifier.scores)

    def _stages(self, x: Tensor) -> list[Tensor]:
        return self.network.stage_features(x) if self.layers == "all" else [self.network.features(x)]

    def _density(self, layer: int) -> TiedGaussians:
        density = self.densities[layer]
        assert isinstance(density, TiedGaussians)
        return density

    def _score_of(self, layer: int, z: Tensor) -> Tensor:
        return -self._density(layer).squared_distances(z).amin(-1)

    def _score_at(self, layer: int, x: Tensor) -> Tensor:
        return self._score_of(layer, self._stages(x)[layer])

    def _all_scores(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._scores(x, self.epsilons)

    def _scores(self, x: Tensor, epsilons: Sequence[float]) -> Tensor:
        r""":math:`M_l` at perturbed inputs, ``[B, E, L]``."""
        columns = []
        for layer in range(len(self.dims)):
            of_layer = partial(self._score_at, layer)
            gradient = value_and_gradient(of_layer, x)[1]
            moved = [of_layer(ascending_step(x, gradient, epsilon, self.units.std)) for epsilon in epsilons]
            columns.append(torch.stack(moved, -1))
        return torch.stack(columns, -1)


def regression(known: Tensor, unknown: Tensor) -> Tensor:
    """Weights ``[L]`` of a logistic regression that tells ``known: [N, L]`` from ``unknown: [M, L]``, both float64.

    Scores are brought to unit variance first, and both sides weigh the same whatever N and M.
    """
    scores = torch.cat([known, unknown])
    scale = scores.std(0).clamp(min=torch.finfo(scores.dtype).tiny)
    labels = [1] * len(known) + [0] * len(unknown)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit((scores / scale).numpy(), labels)
    return torch.as_tensor(model.coef_[0]) / scale
