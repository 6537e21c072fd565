"""Errors of models on data that they have not seen: cuts into folds, and the rows that a model of each fold yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.error_prediction.features import ErrorFeatures
from uncertainty_est.errors import ConfigError

FOLD_MODES = ("class_groups", "random", "stratified")
TASKS = ("classification", "regression")

Outputs = Mapping[str, Tensor]


@dataclass
class Rows:
    """What an error predictor is trained on, R rows.

    Attributes:
        features: ``[R, F]`` float64.
        errors: ``[R]`` float64, the loss of the row's sample under its fold's model.
        samples: ``[R]`` int64, position of the sample; several rows may share one.
    """

    features: Tensor
    errors: Tensor
    samples: Tensor


def group_classes(num_classes: int, num_folds: int) -> Tensor:
    """Fold of every class, ``[C]`` int64: consecutive classes together, in nearly equal groups.

    Raises:
        ConfigError: more groups than classes, or so few that a model would be left with a single class.
    """
    groups = torch.arange(num_classes) * num_folds // num_classes
    if num_folds > num_classes or num_classes - int(torch.bincount(groups).max()) < 2:
        raise ConfigError(
            f"fixed.model_config.folds: {num_classes} classes cannot be left out in {num_folds} groups such that each"
            f" model keeps at least 2; choose another number, or fixed.model_config.fold_mode=stratified"
        )
    return groups


def held_out_by_fold(
    y: Tensor, num_folds: int, mode: str, generator: torch.Generator, *, num_classes: int = 1, spare: float = 0.0
) -> Tensor:
    r"""Which samples the model of each fold must not see, ``[K, N]`` bool on the device of `y`.

    ``class_groups``: the samples of a group of classes (see :func:`group_classes`), so that a model meets classes it
    does not know; ``random``: a share of 1/K; ``stratified``: as much of every class. Each sample is held out by one
    fold and no other. `spare` holds out more: this share of the samples, each by one fold that does not hold it out
    already, so that a model of a class group has unseen samples of the classes it knows, too.

    References:
        Lahlou et al., arXiv:2102.08501, Algorithm 2; groups of classes: its experiments on CIFAR-10.

    Args:
        y: labels ``[N]``, integers for all modes but ``random``.
        num_folds: K, at least 2 and at most N.
        mode: one of :data:`FOLD_MODES`.
        generator: on the CPU; all draws come from it.
        num_classes: C, of ``class_groups``.
        spare: in [0, 1].

    Raises:
        ConfigError: more folds than samples or than classes to group.
        ValueError: fewer than 2 folds or an unknown mode.
    """
    if num_folds < 2 or mode not in FOLD_MODES:
        raise ValueError(f"folds must be at least 2 and fold_mode one of {FOLD_MODES}, got {num_folds} and '{mode}'")
    n = len(y)
    if num_folds > n:
        raise ConfigError(f"fixed.model_config.folds: {n} samples cannot be cut into {num_folds} folds; choose fewer")
    order = torch.randperm(n, generator=generator).to(y.device)
    if mode == "class_groups":
        folds = group_classes(num_classes, num_folds).to(y.device)[y]
    else:
        if mode == "stratified":
            order = order[y[order].argsort(stable=True)]
        folds = torch.empty_like(order)
        folds[order] = torch.arange(n, device=y.device) % num_folds
    number = torch.arange(num_folds, device=y.device).unsqueeze(-1)
    offset = torch.randint(1, num_folds, (n,), generator=generator).to(y.device)
    chosen = (torch.rand(n, generator=generator) < spare).to(y.device)
    return (folds == number) | (((folds + offset) % num_folds == number) & chosen)


def pointwise_errors(task: str, outputs: Outputs, y: Tensor) -> Tensor:
    """Loss of every sample, ``[N]`` float64.

    Negative log-likelihood of ``logits [N, C]`` (classification), or square of ``prediction [N]`` - y (regression).

    Raises:
        ValueError: another task.
    """
    if task == "classification":
        return F.cross_entropy(outputs["logits"].double(), y, reduction="none")
    if task == "regression":
        return (outputs["prediction"].double() - y.double()).square()
    raise ValueError(f"task must be one of {TASKS}, got '{task}'")


@torch.no_grad()
def rows_of_fold(
    held_out: Tensor,
    y: Tensor,
    outputs_of: Callable[[Tensor], Outputs],
    features: ErrorFeatures,
    task: str = "classification",
) -> Rows:
    """The rows of one fold: held-out samples, and where the features ask for it the seen ones with their bit set.

    References:
        Lahlou et al., arXiv:2102.08501, Algorithm 2.

    Args:
        held_out: ``[N]`` bool.
        y: ``[N]``.
        outputs_of: given the positions ``[n]`` of the samples to train on, what that model says of all N samples.
        features: of this fold, fitted here to the samples that its model was trained on.
        task: see :func:`pointwise_errors`.
    """
    train = (~held_out).nonzero().squeeze(-1)
    outputs = outputs_of(train)
    features.fit({name: value[train] for name, value in outputs.items()}, y[train])
    errors = pointwise_errors(task, outputs, y)
    samples = held_out.nonzero().squeeze(-1)
    if features.with_seen:
        samples = torch.cat([samples, train])
    described = features({name: value[samples] for name, value in outputs.items()}, seen=~held_out[samples])
    return Rows(described, errors[samples], samples)


def stacked(parts: Iterable[Rows]) -> Rows:
    """The rows of all folds, one after another."""
    features, errors, samples = zip(*((part.features, part.errors, part.samples) for part in parts), strict=True)
    return Rows(torch.cat(features), torch.cat(errors), torch.cat(samples))
