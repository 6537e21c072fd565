"""What is labelled first and next, and what a pool is made of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.conftest import compose_points
from tests.data.layouts import Memory
from uncertainty_est.active_learning.pool import Mixed, Pool, initial_rows, lowest
from uncertainty_est.data.loader import TensorLoader
from uncertainty_est.data.source import SPLIT_NAMES, Split
from uncertainty_est.data.sources.image import Digits, PhotoPatches
from uncertainty_est.data.sources.noise import Unscaled
from uncertainty_est.errors import ConfigError, DataError


@given(n=st.integers(3, 40), seed=st.integers(0, 99))
def test_the_start_is_balanced_and_without_repetition(n: int, seed: int) -> None:
    labels = np.repeat([2, 0, 1], [20, 14, 30])
    rows = initial_rows(labels, 3, n, np.random.default_rng(seed))
    counts = np.bincount(labels[rows], minlength=3)
    assert len(set(rows.tolist())) == n == counts.sum()
    assert counts.max() - counts.min() <= 1


def test_the_seed_decides_the_start_and_every_item_can_be_in_it() -> None:
    labels = np.arange(30) % 3

    def start(seed: int) -> list[int]:
        return initial_rows(labels, 3, 4, np.random.default_rng(seed)).tolist()

    assert start(5) == start(5)
    starts = [start(seed) for seed in range(200)]
    assert {row for rows in starts for row in rows} == set(range(30))
    assert {int(np.bincount(labels[rows]).argmax()) for rows in starts} == {0, 1, 2}, "any class may have one more"


def test_a_start_that_cannot_be_balanced() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="initial_labels: 2 is less than one for each of 3 classes"):
        initial_rows(np.arange(9) % 3, 3, 2, rng)
    with pytest.raises(ConfigError, match="takes 3 items of class 1, which has 1 in the training split; lower it"):
        initial_rows(np.array([0, 0, 0, 0, 1]), 2, 6, rng)


@given(
    scores=st.lists(st.integers(-3, 3) | st.floats(-1e30, 1e30), min_size=1, max_size=40),
    k=st.integers(1, 45),
    seed=st.integers(0, 9),
)
def test_exactly_the_lowest_are_acquired(scores: list[float], k: int, seed: int) -> None:
    values = np.array(scores, dtype=np.float64)
    rows = lowest(values, k, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows) == min(k, len(values))
    assert np.array_equal(values[rows], np.sort(values)[:k])


def test_ties_are_broken_by_lot() -> None:
    """Of equal scores every item is as likely as any other: this is the random acquisition."""
    drawn = Counter(int(i) for seed in range(2000) for i in lowest(np.zeros(10), 3, np.random.default_rng(seed)))
    share = np.array([drawn[i] for i in range(10)]) / 2000
    assert np.abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


def memory(n: int, seed: int = 1) -> Memory:
    return Memory({"train": n, "test": 10}, split_seed=seed)


def test_a_mixed_pool_has_both_training_splits_and_its_own_others() -> None:
    own, extra = memory(50), memory(20, seed=2)
    mixed = Mixed(own, extra)
    train = mixed.split("train")
    parts = own.split("train"), extra.split("train")
    assert torch.equal(train.x, torch.cat([part.x for part in parts]))
    assert torch.equal(train.y, torch.cat([part.y for part in parts]))
    assert torch.equal(train.indices < 0, torch.arange(len(train)) >= len(parts[0]))
    assert len(train.indices.unique()) == len(train)
    for name in SPLIT_NAMES[1:]:
        assert torch.equal(mixed.split(name).x, own.split(name).x)


def test_sets_that_cannot_be_mixed() -> None:
    digits = Digits(shape=[1, 8, 8])
    with pytest.raises(ConfigError, match="pool_extra: .* is in network space and digits in raw space"):
        Mixed(digits, Unscaled(digits))
    tiles = PhotoPatches(shape=[1, 6, 6])
    with pytest.raises(DataError, match=r"items of photo_patches are .* of shape \(1, 6, 6\), those of digits"):
        Mixed(digits, tiles).split("train")


def test_only_what_is_labelled_is_trained_on_and_an_epoch_keeps_its_length() -> None:
    (fixed,) = compose_points("dataset=digits", "model=img_ce_baseline", "fixed.batch_size=16")
    pool = Pool(fixed, None)
    rows = torch.tensor([700, 3, 41])
    whole = pool.data.id_source.split("train")
    pool.data.train_on(rows, epoch_items=64)
    loader = pool.data.train_dataloader()
    for _ in range(2):
        batches = [batch["id"] for batch in loader]
        assert [len(y) for _, y in batches] == [16] * 4
        drawn = Counter(int(label) for _, y in batches for label in y)
        assert set(drawn) == set(whole.y[rows].tolist())
        assert sum(drawn.values()) == 64
    # Fits see every labelled item once, and the transform is that of the whole split.
    ((x, y),) = pool.data.plain_loader("train")
    assert torch.equal(y, whole.y[rows]) and torch.equal(x, pool.data.transform(whole.x[rows]))
    ((x, y),) = pool.data.training_items_loader(torch.tensor([5, 900]))
    assert torch.equal(y, whole.y[[5, 900]]) and torch.equal(x, pool.data.transform(whole.x[[5, 900]]))
    pool.data.train_on(torch.tensor([8]))
    assert pool.data.split_indices()["train"].tolist() == [int(whole.indices[8])]


@given(
    n=st.integers(1, 30),
    epoch_items=st.integers(1, 70),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 3),
)
def test_an_epoch_of_fixed_length_takes_every_item_equally_often(
    n: int, epoch_items: int, batch_size: int, world_size: int
) -> None:
    split = Split(torch.zeros(n, 1), torch.arange(n), torch.arange(n), "all")
    assume(epoch_items >= world_size)
    drawn: Counter[int] = Counter()
    for rank in range(world_size):
        loader = TensorLoader(
            split, batch_size, shuffle=True, epoch_items=epoch_items, rank=rank, world_size=world_size
        )
        batches = [y.tolist() for _, y in loader]
        assert len(batches) == len(loader) == -(-(epoch_items // world_size) // batch_size)
        drawn += Counter(label for labels in batches for label in labels)
    assert drawn.total() == epoch_items // world_size * world_size
    left_out = epoch_items % world_size
    counts = [drawn[label] for label in range(n)]
    assert max(counts) - min(counts) <= 1 + left_out


def test_a_length_is_of_shuffled_epochs_only() -> None:
    split = Split(torch.zeros(3, 1), torch.arange(3), torch.arange(3), "all")
    for options in ({"epoch_items": 0, "shuffle": True}, {"epoch_items": 5}):
        with pytest.raises(ValueError, match="epoch_items must be at least 1 and needs shuffle=True"):
            TensorLoader(split, 2, **options)  # type: ignore[arg-type]
    epochs = TensorLoader(split, 2, shuffle=True, epoch_items=6)
    orders = {tuple(label for _, y in epochs for label in y.tolist()) for _ in range(20)}
    assert len(orders) > 10 and all(sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2] for order in orders)


def test_a_tables_transform_is_that_of_the_whole_pool() -> None:
    (fixed,) = compose_points("dataset=wine", "model=fc_ce_baseline")
    pool = Pool(fixed, None)
    ((before, _),) = pool.data.training_items_loader(torch.arange(9))
    pool.data.train_on(torch.tensor([1, 2]))
    pool.data.setup("fit")
    ((after, _),) = pool.data.training_items_loader(torch.arange(9))
    assert torch.equal(before, after)


def test_the_digest_tells_pools_apart() -> None:
    digests = [
        Pool(compose_points("dataset=wine", "model=fc_ce_baseline", f"fixed.split_seed={seed}")[0], None).digest
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]
