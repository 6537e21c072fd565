"""What is read of a classifier beside its own answers, and from the same pass: temperature scaling, post-hoc scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.transforms import ImageTransform
from uncertainty_est.errors import USER_ERRORS, ConfigError
from uncertainty_est.models.base import Method, Prediction, finished, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.temperature_scaling import scale
from uncertainty_est.networks.base import Network, features_and_logits
from uncertainty_est.posthoc.base import PerturbedScore, PosthocScore

log = logging.getLogger(__name__)

Split = Literal["train", "val"] | None
Samples = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reading:
    """How every batch is read.

    Attributes:
        method: in the mode that it is in; it stays as it is.
        temperature: that logits are divided by for a second prediction, float64.
        scores: fitted, which join the method's own; of the logits as they are.
        std: standard deviations of the transform, for steps on inputs, a scalar or ``[1, C, 1, 1]``.
    """

    method: Method
    temperature: Tensor | None = None
    scores: Sequence[PosthocScore] = ()
    std: Tensor = field(default_factory=lambda: torch.ones(()))

    def predict(self, x: Tensor) -> list[Prediction]:
        """:meth:`~Method.predict` of ``x: [B, *data_shape]`` with further scores, then with scaled logits if asked for.

        All from one pass through the network, except for methods that average over passes of their own and for scores
        of moved inputs.
        """
        method = self.method
        with scoring_mode(method):
            if not isinstance(method, CEBaseline):
                own, outputs = read_beside(method, x)
                return [finished(Prediction(own.probs, own.scores | self._further(x, outputs, own)))]
            outputs = method.outputs(x)
            one_pass = type(method)._predict is CEBaseline._predict
            own = method.predict_from(outputs) if one_pass else method._predict(x)
            predictions = [Prediction(own.probs, own.scores | self._further(x, outputs, own))]
            if self.temperature is not None:
                scaled = scale(outputs["logits"], self.temperature)
                predictions.append(method.predict_from(outputs | {"logits": scaled}))
            return [finished(prediction) for prediction in predictions]

    def _further(self, x: Tensor, outputs: dict[str, Tensor], own: Prediction) -> dict[str, Tensor]:
        values = {}
        for score in self.scores:
            if score.label in own.scores:
                raise ConfigError(
                    f"--scores {score.name}: {type(self.method).__name__} has a score '{score.label}' of its own"
                )
            if isinstance(score, PerturbedScore) and score.epsilon:
                values[score.label] = score.score_inputs(x, self._classifier, self.std)
            else:
                values[score.label] = score.score(outputs["features"], outputs["logits"])
        return values

    def _classifier(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return features_and_logits(network_of(self.method), x)


def network_of(method: Method) -> Network:
    """The classifier of a method that has one."""
    network = method.classifier
    assert network is not None  # methods without one are given no scores
    return network


def read_beside(method: Method, x: Tensor) -> tuple[Prediction, dict[str, Tensor]]:
    """The method's own answers for ``x: [B, *data_shape]``, and features and logits from the pass that they take."""
    passes: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        passes.append((inputs[0].float(), logits.float()))

    hook = network_of(method).head.register_forward_hook(keep)
    try:
        own = method._predict(x)
    finally:
        hook.remove()
    return own, dict(zip(("features", "logits"), passes[0], strict=True))


def samples_of(method: Method, data: OODDataModule, split: Split, device: torch.device | str) -> Samples:
    """Features ``[N, D]``, logits ``[N, C]`` and labels ``[N]`` of a split of the run, N = 0 without one."""
    network = network_of(method)
    head = network.head
    parts = [
        (
            torch.empty(0, head.in_features, device=device),
            torch.empty(0, head.out_features, device=device),
            torch.empty(0, dtype=torch.long, device=device),
        )
    ]
    if split is not None:
        with scoring_mode(method):
            for x, y in data.plain_loader(split, device=device):
                parts.append((*features_and_logits(network, x), y))
    features, logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return features, logits, labels


def fit_scores(
    scores: Sequence[PosthocScore], method: Method, data: OODDataModule, device: torch.device | str
) -> tuple[list[PosthocScore], list[str]]:
    """Those of `scores` that could be fitted to the run's own splits, each forwarded once; and why others could not.

    Args:
        scores: not fitted yet.
        method: is moved to `device`.
        data: of the run, set up.
        device: where to compute.

    Returns:
        The fitted scores in the order given, and a sentence for each of the others.
    """
    if method.classifier is None:
        sentence = (
            f"--scores: {type(method).__name__} is no classifier with features and logits, which post-hoc scores read;"
            f" it has its own scores only"
        )
        log.warning(sentence)
        return [], [sentence]
    method = method.to(device)
    samples: dict[Split, Samples] = {}
    fitted: list[PosthocScore] = []
    failed: list[str] = []
    for score in scores:
        if score.split not in samples:
            samples[score.split] = samples_of(method, data, score.split, device)
        try:
            with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
                score.fit(*samples[score.split], network_of(method).head)
        except (*USER_ERRORS, ValueError) as error:
            failed.append(f"--scores {score.label} is left out: {error}")
            log.error(failed[-1])
        else:
            fitted.append(score)
    return fitted, failed


def std_of(data: OODDataModule) -> Tensor:
    """Standard deviations that the transform of images divides pixels of [0, 1] by; 1 for tables."""
    return data.transform.std if isinstance(data.transform, ImageTransform) else torch.ones(())
