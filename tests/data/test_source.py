"""Splits: disjoint, complete, and determined by split_seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.layouts import Memory
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.errors import DataError


@given(
    n=st.integers(10, 200),
    seed=st.integers(0, 2**31),
    val=st.sampled_from([0.1, 0.2, 0.35]),
    test=st.sampled_from([0.1, 0.3, 0.6]),
)
def test_three_splits_of_one_file_cover_it_once(n: int, seed: int, val: float, test: float) -> None:
    source = Memory({"all": n}, split_seed=seed, val_fraction=val, test_fraction=test)
    splits = [source.split(name) for name in SPLIT_NAMES]
    indices = torch.cat([s.indices for s in splits])
    assert sorted(indices.tolist()) == list(range(n))
    assert {s.part for s in splits} == {"all"}
    assert abs(len(splits[1]) - val * n) <= 1 and abs(len(splits[2]) - test * n) <= 1
    for s in splits:  # rows and labels belong to their indices
        assert torch.equal(s.x[:, 0].long(), s.indices) and torch.equal(s.y, s.indices % 3)
        assert s.indices.dtype == s.y.dtype == torch.int64


def test_the_cut_is_the_permutation_of_the_split_seed() -> None:
    source = Memory({"all": 1980}, split_seed=1, val_fraction=0.1, test_fraction=0.1)
    order = np.random.default_rng(1).permutation(1980)
    assert np.array_equal(source.split("train").indices, order[:1584])
    assert np.array_equal(source.split("val").indices, order[1584:1782])
    assert np.array_equal(source.split("test").indices, order[1782:])


def test_an_official_test_part_is_the_test_split_in_its_own_order() -> None:
    source = Memory({"train": 50, "test": 20}, val_fraction=0.1)
    train, val, test = (source.split(name) for name in SPLIT_NAMES)
    assert (train.part, val.part, test.part) == ("train", "train", "test")
    assert (len(train), len(val)) == (45, 5)
    assert sorted(torch.cat([train.indices, val.indices]).tolist()) == list(range(50))
    assert test.indices.tolist() == list(range(20))


def test_each_part_is_loaded_once() -> None:
    source = Memory({"train": 50, "test": 20})
    for _ in range(2):
        for name in SPLIT_NAMES:
            source.split(name)
    assert sorted(source.loads) == ["test", "train"]


def test_same_seed_same_split_and_another_seed_another_split() -> None:
    first, again, other = (
        Memory({"all": 100}, split_seed=seed, test_fraction=0.2).split("train") for seed in (5, 5, 6)
    )
    assert torch.equal(first.indices, again.indices) and torch.equal(first.x, again.x)
    assert not torch.equal(first.indices, other.indices)


def test_classes_are_kept_and_relabelled_in_the_given_order() -> None:
    source = Memory({"train": 60, "test": 30}, num_classes=5, classes=[4, 1])
    for name in SPLIT_NAMES:
        split = source.split(name)
        assert torch.equal(split.y, (split.indices % 5 == 1).long())  # 4 -> 0, 1 -> 1
        assert set((split.indices % 5).tolist()) == {4, 1}
    kept = torch.cat([source.split("train").indices, source.split("val").indices])
    assert sorted(kept.tolist()) == [i for i in range(60) if i % 5 in (1, 4)]


def test_classes_that_are_not_there_are_named() -> None:
    with pytest.raises(DataError, match=r"no items of the classes \[7\]"):
        Memory({"all": 60}, classes=[1, 7], test_fraction=0.2).split("train")


def test_max_items_keeps_a_random_subset_of_each_split() -> None:
    whole = Memory({"train": 100, "test": 40})
    few = Memory({"train": 100, "test": 40}, max_items=10)
    for name in SPLIT_NAMES:
        kept, all_indices = few.split(name).indices, whole.split(name).indices
        assert len(kept) == 10 and len(kept.unique()) == 10
        assert set(kept.tolist()) < set(all_indices.tolist())
        assert not torch.equal(kept, all_indices[:10])
        again = Memory({"train": 100, "test": 40}, max_items=10).split(name).indices
        assert torch.equal(kept, again)
    assert len(Memory({"train": 100, "test": 40}, max_items=1000).split("test")) == 40


def test_an_empty_split_is_refused() -> None:
    source = Memory({"all": 50}, val_fraction=0.2, test_fraction=0.8)
    assert len(source.split("val")) == 10 and len(source.split("test")) == 40
    with pytest.raises(DataError, match="its train split is empty"):
        source.split("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": -0.1}, "val_fraction must lie in"),
        ({"val_fraction": 0.5, "test_fraction": 0.6}, "test_fraction must lie in"),
        ({"test_fraction": None}, r"test_fraction must lie in \[0, 1 - val_fraction\], got None"),
        ({"max_items": 0}, "max_items must be at least 1, got 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Memory({"all": 10}, **arguments)  # type: ignore[arg-type]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be 'train', 'val' or 'test', got 'dev'"):
        Memory({"all": 10}).split("dev")  # type: ignore[arg-type]
