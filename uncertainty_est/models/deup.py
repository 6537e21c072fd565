"""Direct Epistemic Uncertainty Prediction: a second network learns what loss the classifier will have."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.data.loader import TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.error_prediction.features import DEFAULT_FEATURES, ErrorFeatures
from uncertainty_est.error_prediction.folds import (
    FOLD_MODES,
    Rows,
    group_classes,
    held_out_by_fold,
    pointwise_errors,
    rows_of_fold,
    stacked,
)
from uncertainty_est.error_prediction.predictor import ErrorPredictor, fit_distilled, own_random_numbers
from uncertainty_est.errors import ConfigError, TrainingError
from uncertainty_est.models.base import Prediction, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network, features_and_logits

log = logging.getLogger(__name__)

VARIANTS = ("paper", "torch_uncertainty")
_TU_FEATURES = ("logits", "max_prob", "entropy")
_FOLDS = 5
_EVAL_BATCH_SIZE = 512


class DEUP(CEBaseline):
    r"""Softmax classifier with a predictor g of its loss :math:`-\ln p(y|x)`, learned on data that no model of it saw.

    .. math:: \hat u(x) = g(\phi(x)), \quad \text{or with aleatoric: } \max(0,\, g(\phi(x)) - H[p(y|x)])

    of features :math:`\phi`, see :class:`~uncertainty_est.error_prediction.features.ErrorFeatures`.

    Algorithm 2: the training split is cut into folds, and for each a fresh network is trained on the rest, for
    `fold_epochs` without augmentation, by the configured optimizer with a learning rate that falls to 0 along half a
    cosine. g learns the losses of held-out samples, from features that each fold's own model and densities give. Fold
    models are thrown away: a prediction takes one pass through the classifier, trained on all data, and its own
    densities. With ``seen`` among the features, samples that a fold's model was trained on have rows too, and at test
    time nothing is seen. Under DDP the folds are shared between ranks.

    Algorithm 1: the losses are the classifier's own on the validation split, which it was not trained on. Features of a
    sample come from densities of the other folds of that split, and those of new inputs from all folds but the first:
    densities of more samples would have other levels. Cheaper, and blind to classes that no data show.

    Variant ``torch_uncertainty``: as TorchUncertainty 0.13 has it, on the validation split, see
    :func:`~uncertainty_est.error_prediction.predictor.fit_distilled`.

    Scores: ``deup`` (:math:`-\hat u`, the headline), then the classifier's own. Training is the classifier's.

    References:
        Lahlou et al., arXiv:2102.08501, Algorithms 1 and 2.

    Args:
        network: builds one network; called once for the classifier, and once for each fold.
        data_shape: shape of one input.
        algorithm: 1 or 2.
        variant: ``"paper"`` or ``"torch_uncertainty"``.
        folds: K, at least 2; if not given 5, or with class groups and fewer classes as many as these.
        fold_mode: see :func:`~uncertainty_est.error_prediction.folds.held_out_by_fold`; if not given, ``class_groups``
            for algorithm 2 and at least 3 classes, else ``stratified``.
        spare: with class groups, share of the samples that one more fold's model does not see, one that knows their
            class: without these g sees either only losses on unknown classes, or losses on training data.
        fold_epochs: for which each fold's network is trained.
        batch_size: of the folds' training.
        features: names; density, variance, max_prob and entropy if not given.
        target: what of the loss is learned, see :class:`~uncertainty_est.error_prediction.predictor.ErrorPredictor`;
            ``log`` if not given.
        aleatoric: subtract the entropy, the loss that the classifier itself expects.
        hidden_dims: of the predictor.
        min_jitter: smallest number added to the densities' covariances.
        seed: of folds, their networks and the predictor; global generators stay as they are.

    Raises:
        ConfigError: features or folds that there cannot be.
        ValueError: a setting outside its range, or settings that exclude each other.
    """

    def __init__(
        self,
        network: Callable[[], Network],
        data_shape: Sequence[int],
        algorithm: int = 2,
        variant: str = "paper",
        folds: int | None = None,
        fold_mode: str | None = None,
        spare: float = 1.0,
        fold_epochs: int = 20,
        batch_size: int = 128,
        features: Sequence[str] | None = None,
        target: str | None = None,
        aleatoric: bool = False,
        hidden_dims: Sequence[int] = (64, 64),
        min_jitter: float = 0.0,
        seed: int = 1,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network(), optimizer, scheduler)
        if algorithm not in (1, 2):
            raise ValueError(f"algorithm must be 1 or 2, got {algorithm}")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got '{variant}'")
        if (folds or 2) < 2 or fold_epochs < 1 or batch_size < 1 or not 0 <= spare <= 1:
            raise ValueError(
                f"folds must be at least 2, fold_epochs and batch_size at least 1 and spare in [0, 1], got {folds},"
                f" {fold_epochs}, {batch_size} and {spare}"
            )
        if fold_mode is not None and fold_mode not in FOLD_MODES:
            raise ValueError(f"fold_mode must be one of {', '.join(FOLD_MODES)}, got '{fold_mode}'")
        distilled = variant == "torch_uncertainty"
        if distilled and (features is not None or target is not None):
            raise ValueError("the variant torch_uncertainty has features and target of its own: leave both null")
        target = "none" if distilled else target or "log"
        if aleatoric and target != "none":
            raise ValueError(f"aleatoric subtracts from a mean loss, which target={target} is none of: set target=none")
        classes = self.network.head.out_features
        self.posthoc_split = "train" if algorithm == 2 and not distilled else "val"
        self.fold_mode = fold_mode or ("class_groups" if algorithm == 2 and classes >= 3 else "stratified")
        grouped = self.fold_mode == "class_groups"
        self.folds = folds or (min(_FOLDS, classes) if grouped else _FOLDS)
        self.spare = spare if grouped else 0.0
        if grouped:
            group_classes(classes, self.folds)  # an error now, and not after training
        self._make_network = network
        self.algorithm = algorithm
        self.variant = variant
        self.fold_epochs = fold_epochs
        self.batch_size = batch_size
        self.aleatoric = aleatoric
        self.seed = seed
        self._feature_settings: dict[str, Any] = {
            "names": _TU_FEATURES if distilled else features or DEFAULT_FEATURES,
            "dim": self.network.feature_dim,
            "num_classes": classes,
            "num_logits": classes,
            "input_dim": math.prod(data_shape),
            "min_jitter": min_jitter,
            "scaled": not distilled,
        }
        self.describe = self._new_features()
        self._predictor_settings: tuple[Any, ...] = (self.describe.length, (64,) if distilled else hidden_dims, target)
        self.predictor = ErrorPredictor(*self._predictor_settings)
        self.keep_from_ddp("describe")
        self.keep_from_ddp("predictor")

    def parameter_groups(self) -> Any:
        return self.network.parameters()

    # ------------------------------------------------------------------------------------------------- prediction

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """As the classifier's, and ``uncertainty [B]``, float64.

        Raises:
            NotFittedError: before :meth:`fit_posthoc`.
        """
        outputs = network_outputs(self.network, x)
        return outputs | {"uncertainty": self._uncertainty(outputs)}

    def _uncertainty(self, outputs: dict[str, Tensor]) -> Tensor:
        predicted = self.predictor(self.describe(outputs))
        if not self.aleatoric:
            return predicted
        return (predicted - measures.entropy(outputs["logits"].double().softmax(-1))).clamp(min=0)

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        classifier = super().predict_from(outputs)
        return Prediction(classifier.probs, {"deup": -outputs["uncertainty"]} | classifier.scores)

    # -------------------------------------------------------------------------------------------------- the fit

    def fit_posthoc(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Train the folds' models (algorithm 2), and fit densities, scaling and predictor; alike on all ranks.

        Raises:
            ConfigError: no optimizer to train folds by, or more folds than samples.
            DataError: too few samples.
            TrainingError: a fold's loss diverged.
        """
        x, y = gathered(loader, self.device)
        with scoring_mode(self):
            whole = all_outputs(self.network, x)
            if self.variant == "torch_uncertainty":
                self._fit_distilled(whole, y)
            else:
                self._fit_rows(self._rows(x, y, whole))
        # The same arithmetic on other hardware may round in other ways.
        if world_and_rank()[0] > 1:
            for tensor in [*self.describe.state_dict().values(), *self.predictor.state_dict().values()]:
                distributed.broadcast(tensor, src=0)

    def _fit_distilled(self, whole: dict[str, Tensor], y: Tensor) -> None:
        self.describe.fit(whole, y)
        errors = pointwise_errors("classification", whole, y)
        with own_random_numbers(self.seed, self.device):
            last = fit_distilled(self._new_predictor, self.describe(whole), errors, folds=self.folds)
        self.predictor.load_state_dict(last.state_dict())

    def _fit_rows(self, rows: Rows) -> None:
        self.predictor.fit(rows.features, rows.errors, rows.samples, seed=self.seed)
        log.info("DEUP: %d rows of %d folds, mean loss %.4f", len(rows.errors), self.folds, rows.errors.mean())

    def _rows(self, x: Tensor, y: Tensor, whole: dict[str, Tensor]) -> Rows:
        """The rows of all folds, each made by one rank and sent to the others."""
        if self.algorithm == 2:
            self.describe.fit(whole, y)
        generator = torch.Generator().manual_seed(self.seed)
        classes = self.network.head.out_features
        masks = held_out_by_fold(y, self.folds, self.fold_mode, generator, num_classes=classes, spare=self.spare)
        world, rank = world_and_rank()
        own = {k: self._rows_of_fold(k, masks[k], x, y, whole) for k in range(rank, self.folds, world)}
        if world == 1:
            return stacked(own.values())
        parts = []
        for k, held_out in enumerate(masks):
            count = len(y) if self.describe.with_seen else int(held_out.sum())
            table = torch.empty(count, self.describe.length + 2, dtype=torch.float64, device=self.device)
            if k in own:
                table[:, 0], table[:, 1], table[:, 2:] = own[k].errors, own[k].samples, own[k].features
            distributed.broadcast(table, src=k % world)
            parts.append(Rows(table[:, 2:], table[:, 0], table[:, 1].long()))
        return stacked(parts)

    def _rows_of_fold(self, k: int, held_out: Tensor, x: Tensor, y: Tensor, whole: dict[str, Tensor]) -> Rows:
        if self.algorithm == 1:
            features = self._new_features() if k else self.describe
            return rows_of_fold(held_out, y, lambda _: whole, features)
        return rows_of_fold(
            held_out, y, lambda train: all_outputs(self._trained_on(x[train], y[train], k), x), self._new_features()
        )

    def _trained_on(self, x: Tensor, y: Tensor, fold: int) -> Network:
        """A fresh network, trained on ``x: [n, *data_shape]`` with labels ``y: [n]``, in eval mode."""
        if self._make_optimizer is None:
            raise ConfigError("fixed.model_config.optimizer: training needs an optimizer")
        seed = int(np.random.SeedSequence([self.seed, fold]).generate_state(1)[0])
        split = Split(x, y, torch.arange(len(y)), "train")
        loader = TensorLoader(split, self.batch_size, shuffle=True, seed=seed, device=self.device)
        with own_random_numbers(seed, self.device), torch.enable_grad():
            network = self._make_network().to(self.device)
            optimizer = self._make_optimizer(network.parameters())
            steps = self.fold_epochs * len(loader)
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            for _ in range(self.fold_epochs):
                total = torch.zeros((), device=self.device)
                for inputs, labels in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(network(inputs), labels)
                    loss.backward()
                    optimizer.step()
                    falling.step()
                    total += loss.detach()
                mean = float(total) / len(loader)
                if not math.isfinite(mean):
                    raise TrainingError(
                        f"the loss of DEUP's fold {fold} is no longer a number; lower fixed.model_config.optimizer.lr"
                    )
        log.info("DEUP: fold %d of %d, %d samples, training loss %.4f", fold + 1, self.folds, len(y), mean)
        return network.eval()

    def _new_features(self) -> ErrorFeatures:
        return ErrorFeatures(**self._feature_settings).to(self.device)

    def _new_predictor(self) -> ErrorPredictor:
        return ErrorPredictor(*self._predictor_settings).to(self.device)


def network_outputs(network: Network, x: Tensor) -> dict[str, Tensor]:
    """One pass over ``x: [B, *data_shape]``: ``features [B, D]``, ``logits [B, C]`` and ``input [B, P]``, float32."""
    features, logits = features_and_logits(network, x)
    return {"features": features, "logits": logits, "input": x.flatten(1).float()}


@torch.no_grad()
def all_outputs(network: Network, x: Tensor) -> dict[str, Tensor]:
    """:func:`network_outputs` of ``x: [N, *data_shape]``, however many, by a network in eval mode."""
    parts = [network_outputs(network, part) for part in x.split(_EVAL_BATCH_SIZE)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def world_and_rank() -> tuple[int, int]:
    """Number of processes, and which of them this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def gathered(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """All ``(x [N, *data_shape], y [N])`` of the loaders of all ranks, in the order of the whole split, on every rank.

    Args:
        loader: of this rank, which has the items r, r + W, … of W ranks.
        device: where to put them.
    """
    batches = [(x.to(device), y.to(device)) for x, y in loader]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    world, own_rank = world_and_rank()
    if world == 1:
        return x, y
    count = torch.zeros(world, dtype=torch.long, device=device)
    count[own_rank] = len(y)
    distributed.all_reduce(count)
    total = int(count.sum())
    whole_x, whole_y = x.new_empty(total, *x.shape[1:]), y.new_empty(total)
    for rank, n in enumerate(count.tolist()):
        for whole, part in ((whole_x, x), (whole_y, y)):
            share = part.contiguous() if rank == own_rank else part.new_empty(n, *part.shape[1:])
            distributed.broadcast(share, src=rank)
            whole[rank::world] = share
    return whole_x, whole_y
