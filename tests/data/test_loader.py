"""Batches: balanced, complete, equal in number on every rank, and determined by seed, epoch and rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uncertainty_est.data.loader import JointLoader, TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.data.transforms import ImageTransform
from uncertainty_est.errors import DataError


def numbers(n: int, offset: int = 0) -> Split:
    """Items that are their own number."""
    position = torch.arange(n)
    return Split((position + offset).float().unsqueeze(1), position + offset, position, "all")


def items(loader: TensorLoader) -> list[int]:
    return [int(i) for _, y in loader for i in y]


sizes = st.integers(1, 90)


@given(n=sizes, batch_size=st.integers(1, 40), shuffle=st.booleans())
def test_one_process_sees_every_item_once_in_balanced_batches(n: int, batch_size: int, shuffle: bool) -> None:
    loader = TensorLoader(numbers(n), batch_size, shuffle=shuffle)
    batches = list(loader)
    lengths = [len(y) for _, y in batches]
    assert len(lengths) == len(loader) == -(-n // batch_size)
    assert max(lengths) <= batch_size and max(lengths) - min(lengths) <= 1
    seen = [int(i) for _, y in batches for i in y]
    assert sorted(seen) == list(range(n)) and (shuffle or seen == sorted(seen))
    for x, y in batches:
        assert x.dtype == torch.float32 and torch.equal(x[:, 0].long(), y)


@given(n=sizes, batch_size=st.integers(1, 40), world_size=st.integers(1, 5))
def test_ranks_share_the_items_and_have_as_many_batches(n: int, batch_size: int, world_size: int) -> None:
    loaders = [TensorLoader(numbers(n), batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    if n < world_size:
        with pytest.raises(DataError, match=f"of {n} items cannot be shared by {world_size} processes"):
            len(loaders[0])
        return
    per_rank = [list(loader) for loader in loaders]
    assert len({len(batches) for batches in per_rank} | {len(loader) for loader in loaders}) == 1
    lengths = [len(y) for batches in per_rank for _, y in batches]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1 and max(lengths) <= max(batch_size, 2)
    assert sorted(i for loader in loaders for i in items(loader)) == list(range(n))


@given(
    n=st.integers(5, 90),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_shuffled_ranks_are_equally_long_and_disjoint(n: int, batch_size: int, world_size: int, epoch: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        loader = TensorLoader(numbers(n), batch_size, shuffle=True, rank=rank, world_size=world_size)
        loader.epoch = epoch
        mine = items(loader)
        assert len(mine) == n // world_size
        seen += mine
    assert len(set(seen)) == len(seen) and n - len(seen) < world_size


def test_no_batch_is_left_with_a_single_item() -> None:
    assert [len(y) for _, y in TensorLoader(numbers(129), 64)] == [43, 43, 43]
    assert [len(y) for _, y in TensorLoader(numbers(65), 64)] == [33, 32]


def test_every_epoch_has_its_own_order_and_it_can_be_repeated() -> None:
    loader = TensorLoader(numbers(50), 8, shuffle=True, seed=3)
    first, second = items(loader), items(loader)
    assert loader.epoch == 2 and first != second and sorted(first) == sorted(second)
    again = TensorLoader(numbers(50), 8, shuffle=True, seed=3)
    assert [items(again), items(again)] == [first, second]
    # Seed 4, epoch 0 is not seed 3, epoch 1.
    assert items(TensorLoader(numbers(50), 8, shuffle=True, seed=4)) not in (first, second)


def test_the_epoch_advances_when_iteration_begins() -> None:
    loader = TensorLoader(numbers(50), 8, shuffle=True)
    one, two = iter(loader), iter(loader)
    assert next(one)[1].tolist() != next(two)[1].tolist()


def random_images(n: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(x, torch.arange(n), torch.arange(n), "all")


def test_augmentation_depends_on_seed_epoch_and_rank() -> None:
    transform = ImageTransform(crop_padding=2, flip=True)
    same = random_images(1)
    split = Split(same.x.expand(32, -1, -1, -1), torch.arange(32), torch.arange(32), "all")

    def epoch(seed: int = 0, number: int = 0, rank: int = 0) -> torch.Tensor:
        loader = TensorLoader(split, 8, transform=transform, augment=True, seed=seed, rank=rank, world_size=2)
        loader.epoch = number
        return torch.cat([x for x, _ in loader])

    assert torch.equal(epoch(), epoch())
    for other in (epoch(seed=1), epoch(number=1), epoch(rank=1)):
        assert not torch.equal(epoch(), other)


def test_the_transform_is_applied_and_augmentation_only_where_asked() -> None:
    split = random_images(20)
    transform = ImageTransform(crop_padding=2, flip=True)
    plain = torch.cat([x for x, _ in TensorLoader(split, 6, transform=transform)])
    assert torch.equal(plain, transform(split.x)) and plain.dtype == torch.float32
    training = torch.cat([x for x, _ in TensorLoader(split, 6, transform=transform, augment=True)])
    assert training.shape == plain.shape and not torch.equal(training, plain)


def test_a_consumer_may_change_its_batches() -> None:
    split = numbers(10)
    for x, y in TensorLoader(split, 10):
        x.zero_()
        y.zero_()
    assert torch.equal(split.y, torch.arange(10)) and torch.equal(split.x[:, 0].long(), torch.arange(10))


def test_a_lazy_split_is_loaded_once_and_only_when_needed() -> None:
    loads = []

    def load() -> Split:
        loads.append(1)
        return numbers(10)

    loader = TensorLoader(load, 4)
    assert not loads
    assert len(loader) == 3 and items(loader) == items(loader) == list(range(10))
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank must lie in"),
        ({"batch_size": 4, "augment": True}, "augment needs a transform"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorLoader(numbers(4), **arguments)  # type: ignore[arg-type]


def test_joint_batches_without_outliers() -> None:
    batches = list(JointLoader(TensorLoader(numbers(10), 4)))
    assert [set(batch) for batch in batches] == [{"id"}] * 3
    assert torch.cat([batch["id"][1] for batch in batches]).tolist() == list(range(10))


def test_few_outliers_go_round_in_their_next_epochs() -> None:
    outliers = TensorLoader(numbers(5, offset=100), 2, shuffle=True)
    joint = JointLoader(TensorLoader(numbers(35), 4, shuffle=True), outliers)
    batches = list(joint)
    assert len(batches) == len(joint) == 9
    assert sorted(int(i) for batch in batches for i in batch["id"][1]) == list(range(35))
    rounds = [torch.cat([batch["ood"][1] for batch in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(sorted(r.tolist()) == [100, 101, 102, 103, 104] for r in rounds)
    assert len({tuple(r.tolist()) for r in rounds}) > 1  # shuffled anew
    assert outliers.epoch == 3


def test_many_outliers_do_not_prolong_the_epoch() -> None:
    joint = JointLoader(TensorLoader(numbers(8), 4), TensorLoader(numbers(100), 10))
    assert [len(batch["ood"][1]) for batch in joint] == [10, 10]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_the_gpu_are_those_on_the_cpu(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uncertainty_est.data.loader._RESIDENT_BYTES", 2**31 if resident else 0)
    split, transform = random_images(20), ImageTransform(crop_padding=2)
    on_cpu = TensorLoader(split, 6, transform=transform, shuffle=True)
    on_gpu = TensorLoader(split, 6, transform=transform, shuffle=True, device="cuda")
    for (x, y), (x_gpu, y_gpu) in zip(on_cpu, on_gpu, strict=True):
        assert x_gpu.is_cuda and y_gpu.is_cuda
        torch.testing.assert_close(x_gpu.cpu(), x)
        assert torch.equal(y_gpu.cpu(), y)
    training = TensorLoader(split, 6, transform=transform, augment=True, device="cuda")
    assert all(x.is_cuda for x, _ in training)
