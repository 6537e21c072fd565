"""Bookkeeping of out-of-fold errors: who has seen what, told by a spy in place of a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uncertainty_est.error_prediction.features import ErrorFeatures
from uncertainty_est.error_prediction.folds import (
    FOLD_MODES,
    group_classes,
    held_out_by_fold,
    pointwise_errors,
    rows_of_fold,
    stacked,
)
from uncertainty_est.errors import ConfigError

N, C, K = 103, 10, 5


def labels() -> Tensor:
    return torch.randint(C, (N,), generator=torch.Generator().manual_seed(0))


def masks(mode: str, spare: float = 0.0, seed: int = 0) -> Tensor:
    return held_out_by_fold(labels(), K, mode, torch.Generator().manual_seed(seed), num_classes=C, spare=spare)


@pytest.mark.parametrize("mode", FOLD_MODES)
@pytest.mark.parametrize("with_seen", [False, True])
def test_every_sample_has_one_out_of_fold_error_from_a_model_that_never_saw_it(mode: str, with_seen: bool) -> None:
    y, x = labels(), torch.arange(N, dtype=torch.float32)
    saw: list[set[int]] = []

    def spy(train: Tensor) -> dict[str, Tensor]:
        """Says the number of its fold, so that a row's error, its square, tells which model the row is from."""
        saw.append(set(train.tolist()))
        return {"prediction": torch.full((N,), float(len(saw))), "input": x.unsqueeze(-1)}

    def describe() -> ErrorFeatures:
        return ErrorFeatures(["input", *(["seen"] if with_seen else [])], 0, input_dim=1, scaled=False)

    parts = [rows_of_fold(held_out, torch.zeros(N), spy, describe(), "regression") for held_out in masks(mode)]
    rows = stacked(parts)
    assert len(rows.errors) == (K * N if with_seen else N)
    assert torch.equal(rows.features[:, 0], rows.samples.double()), "features are those of the row's own sample"
    unseen = rows.features[:, 1] == 0 if with_seen else torch.ones(N, dtype=torch.bool)
    assert torch.equal(rows.samples[unseen].sort().values, torch.arange(N))
    for sample, error, new in zip(
        rows.samples.tolist(), rows.errors.sqrt().int().tolist(), unseen.tolist(), strict=True
    ):
        assert (sample in saw[error - 1]) != new
    if mode == "class_groups":
        for k, seen in enumerate(saw):
            assert {int(y[i]) for i in seen} == set(range(C)) - {2 * k, 2 * k + 1}


def test_folds_are_nearly_equal_and_of_the_generator() -> None:
    for mode in ("random", "stratified"):
        sizes = masks(mode).sum(-1)
        assert sizes.max() - sizes.min() <= 1
        assert torch.equal(masks(mode), masks(mode))
        assert not torch.equal(masks(mode), masks(mode, seed=1))
    of_class = torch.stack([masks("stratified")[:, labels() == c].sum(-1) for c in range(C)])
    assert (of_class.amax(-1) - of_class.amin(-1)).max() <= 1


@pytest.mark.parametrize("mode", FOLD_MODES)
def test_spared_samples_are_held_out_by_one_more_fold(mode: str) -> None:
    plain, spared = masks(mode), masks(mode, spare=1.0)
    assert (plain.sum(0) == 1).all() and (spared.sum(0) == 2).all()
    assert (spared | plain).equal(spared)
    half = masks(mode, spare=0.5).sum(0)
    assert set(half.tolist()) == {1, 2} and 30 < (half == 2).sum() < 73


@pytest.mark.parametrize(("classes", "folds", "sizes"), [(10, 5, [2] * 5), (10, 3, [4, 3, 3]), (3, 3, [1, 1, 1])])
def test_groups_are_of_consecutive_classes(classes: int, folds: int, sizes: list[int]) -> None:
    groups = group_classes(classes, folds)
    assert torch.bincount(groups).tolist() == sizes
    assert (groups.diff() >= 0).all()


@pytest.mark.parametrize(("classes", "folds"), [(3, 5), (2, 2), (3, 2)])
def test_impossible_groups_are_an_error_that_names_key_and_remedy(classes: int, folds: int) -> None:
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.folds: .*fold_mode=stratified"):
        group_classes(classes, folds)


def test_more_folds_than_samples_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.folds: 3 samples cannot be cut into 5"):
        held_out_by_fold(torch.zeros(3), 5, "random", torch.Generator())
    with pytest.raises(ValueError, match="fold_mode one of"):
        held_out_by_fold(torch.zeros(9), 5, "contiguous", torch.Generator())


def test_errors_are_negative_log_likelihoods_and_squares() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = torch.tensor([-logits.double()[i].softmax(-1)[c].log() for i, c in enumerate(y.tolist())])
    torch.testing.assert_close(pointwise_errors("classification", {"logits": logits}, y), expected.double())
    squares = pointwise_errors("regression", {"prediction": torch.tensor([1.0, -2.0])}, torch.tensor([0.5, 1.0]))
    assert squares.tolist() == [0.25, 9.0]
    with pytest.raises(ValueError, match="task must be one of"):
        pointwise_errors("ranking", {}, y)
