"""The data module: one transform for all, every set read once, and faults named before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.data.layouts import Memory
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.source import SPLIT_NAMES, Source, Split, SplitName
from uncertainty_est.data.sources.image import Digits
from uncertainty_est.data.sources.noise import UniformNoise, Unscaled
from uncertainty_est.data.sources.pack import NpzPack
from uncertainty_est.data.transforms import ImageTransform, TableTransform
from uncertainty_est.errors import DataError


def memory(**arguments: Any) -> Memory:
    return Memory({"train": 100, "test": 30}, **arguments)


def module(**changes: Any) -> OODDataModule:
    arguments: dict[str, Any] = {
        "id_source": memory(),
        "transform": TableTransform("standard"),
        "data_shape": [2],
        "num_classes": 3,
        "batch_size": 16,
        "eval_batch_size": 25,
        "ood_source": None,
        "val_ood_sources": {},
        "test_ood_sources": {},
        "seed": 0,
    }
    return OODDataModule(**(arguments | changes))


class Bent(Source):
    """Another source with a fault put into one split."""

    def __init__(self, source: Source, fault: dict[SplitName, Split]) -> None:
        self.source, self.fault = source, fault
        self.name, self.shape = source.name, source.shape

    def prepare(self) -> None:
        self.source.prepare()

    def split(self, name: SplitName) -> Split:
        return self.fault[name] if name in self.fault else self.source.split(name)


def test_training_batches_are_shuffled_and_scaled_by_the_training_split() -> None:
    data = module()
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 5 and all(set(batch) == {"id"} for batch in batches)
    x = torch.cat([batch["id"][0] for batch in batches])
    assert len(x) == 80
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2))
    y = torch.cat([batch["id"][1] for batch in batches])
    assert not torch.equal(y, data.id_source.split("train").y)


@pytest.mark.parametrize(("split", "size"), [("train", 80), ("val", 20), ("test", 30)])
def test_plain_loader_has_the_split_in_order(split: SplitName, size: int) -> None:
    data = module()
    expected = data.id_source.split(split)
    y = torch.cat([y for _, y in data.plain_loader(split)])
    assert len(y) == size and torch.equal(y, expected.y)
    shares = [torch.cat([y for _, y in data.plain_loader(split, rank=r, world_size=3)]) for r in range(3)]
    assert sum(map(len, shares)) == size
    assert all(torch.equal(shares[r], expected.y[r::3]) for r in range(3))


def test_each_set_is_read_once() -> None:
    id_source, far = memory(), memory()
    data = module(id_source=id_source, test_ood_sources={"far": far}, val_ood_sources={"far": far})
    data.prepare_data()
    for _ in range(2):
        data.setup("fit")
        data.setup("test")
        list(data.train_dataloader())
        list(data.id_test_loader())
        for split in ("val", "test"):
            list(data.ood_loader("far", split))
    assert sorted(id_source.loads) == sorted(far.loads) == ["test", "train"]


def test_image_training_is_augmented_and_everything_else_is_not() -> None:
    data = module(
        id_source=Digits(shape=[1, 8, 8]),
        transform=ImageTransform(crop_padding=2),
        data_shape=[1, 8, 8],
        num_classes=10,
        ood_source=UniformNoise([1, 8, 8], n=50),
    )
    val = data.id_source.split("val")
    batches = list(data.val_dataloader())
    assert torch.equal(torch.cat([batch["id"][0] for batch in batches]), data.transform(val.x))
    assert torch.equal(torch.cat([batch["id"][1] for batch in batches]), val.y)
    outliers = torch.cat([batch["ood"][0] for batch in batches])[:50]
    assert torch.equal(outliers, data.transform(UniformNoise([1, 8, 8], n=50).split("val").x))
    train = data.id_source.split("train")
    originals = {row.numpy().tobytes() for row in data.transform(train.x)}
    moved = torch.cat([batch["id"][0] for batch in data.train_dataloader()])
    kept = sum(row.numpy().tobytes() in originals for row in moved)
    assert 0 < kept < 0.2 * len(moved)  # one shift in 25 is none


def test_outliers_come_along_in_training() -> None:
    data = module(ood_source=memory())
    batches = list(data.train_dataloader())
    assert all(set(batch) == {"id", "ood"} for batch in batches)
    # The same items as the ID set, in an order of their own.
    assert not torch.equal(batches[0]["id"][0], batches[0]["ood"][0])


def test_items_in_network_space_are_not_transformed() -> None:
    noise = UniformNoise([2], n=30)
    data = module(test_ood_sources={"noise": noise, "unscaled": Unscaled(memory())})
    loaders = data.ood_loaders("test")
    assert list(loaders) == ["noise", "unscaled"]
    assert torch.equal(torch.cat([x for x, _ in loaders["noise"]]), noise.split("test").x)
    raw = memory().split("test").x * 255
    assert torch.equal(torch.cat([x for x, _ in loaders["unscaled"]]), data.transform(raw))


def test_unscaled_images_reach_the_network_as_bytes() -> None:
    digits = {
        "id_source": Digits(shape=[1, 8, 8]),
        "transform": ImageTransform(),
        "data_shape": [1, 8, 8],
        "num_classes": 10,
    }
    data = module(test_ood_sources={"u": Unscaled(Digits(shape=[1, 8, 8]))}, **digits)
    assert max(float(x.max()) for x, _ in data.ood_loader("u", "test")) == 255


def test_a_set_that_cannot_be_read_does_not_hinder_the_others(tmp_path: Path) -> None:
    missing = NpzPack(str(tmp_path), "gone", shape=[2])
    data = module(test_ood_sources={"gone": missing, "far": memory()})
    loaders = data.ood_loaders("test")
    assert sum(len(y) for _, y in loaders["far"]) == 30
    with pytest.raises(DataError, match=r"gone\.npz: cannot be opened"):
        len(loaders["gone"])
    with pytest.raises(DataError, match=r"gone\.npz"):
        data.prepare_data()


def test_an_unknown_ood_set_is_named() -> None:
    data = module(test_ood_sources={"far": memory()})
    with pytest.raises(DataError, match=r"there is no OOD set 'near' for test \(there are: far\)"):
        data.ood_loader("near", "test")
    with pytest.raises(DataError, match=r"there is no OOD set 'far' for val \(there are: none\)"):
        data.ood_loader("far", "val")


def test_another_shape_is_refused_for_id_and_ood_sets() -> None:
    with pytest.raises(DataError, match=r"memory: items have the shape \(2,\), but .*data_shape is \(3,\)"):
        module(data_shape=[3]).setup("fit")
    data = module(test_ood_sources={"noise": UniformNoise([5])})
    with pytest.raises(DataError, match=r"uniform_noise: items have the shape \(5,\)"):
        list(data.ood_loader("noise", "test"))


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match="labels of its train split range from 0 to 2, but .* allows 0 to 1"):
        module(num_classes=2).setup("fit")
    val = memory().split("val")
    bent = Bent(memory(), {"val": replace(val, y=val.y - 1)})
    with pytest.raises(DataError, match="labels of its val split range from -1 to 1"):
        module(id_source=bent).setup("fit")


def test_splits_that_share_items_are_refused() -> None:
    bent = Bent(memory(), {"val": memory().split("train")})
    with pytest.raises(DataError, match="80 items of its 'train' file are more than once .* train, val"):
        module(id_source=bent).setup("fit")


def test_an_empty_split_is_refused() -> None:
    empty = Split(torch.zeros(0, 2), torch.zeros(0).long(), torch.zeros(0).long(), "train")
    with pytest.raises(DataError, match="memory: its val split is empty"):
        module(id_source=Bent(memory(), {"val": empty})).setup("fit")


def test_class_counts_are_those_of_the_training_split() -> None:
    data = module(num_classes=5)
    expected = np.bincount(data.id_source.split("train").y, minlength=5)
    assert data.class_counts.dtype == torch.int64 and data.class_counts.tolist() == expected.tolist()
    assert data.class_counts[3:].tolist() == [0, 0]


def test_split_indices_are_those_of_the_source() -> None:
    data = module()
    indices = data.split_indices()
    assert list(indices) == list(SPLIT_NAMES)
    for name in SPLIT_NAMES:
        assert np.array_equal(indices[name], data.id_source.split(name).indices)


class _Recorder(pl.LightningModule):
    """Keeps what Lightning hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.train_labels: list[list[int]] = [[], []]
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        x, y = batch["id"]
        self.train_labels[self.current_epoch] += (1000 * x[:, 0]).round().int().tolist()
        self.batches.append(batch)
        return torch.nn.functional.cross_entropy(self.layer(x), y)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_trains_on_it(tmp_path: Path) -> None:
    recorder = _Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(recorder, datamodule=module(ood_source=memory()))
    assert trainer.global_step == 10 and len(recorder.batches) == 2 * (5 + 1)
    assert all(set(batch) == {"id", "ood"} for batch in recorder.batches)
    first, second = recorder.train_labels
    assert first != second and sorted(first) == sorted(second) and len(set(first)) == 80


def test_rank_and_world_size_come_from_the_trainer() -> None:
    class Strategy:
        root_device = torch.device("cpu")

    class Trainer:
        strategy, world_size = Strategy(), 2

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    seen = []
    for rank in range(2):
        data = module()
        data.trainer = Trainer(rank)  # type: ignore[assignment]
        loader = data.train_dataloader()
        assert len(loader) == 3
        seen += [row for batch in loader for row in batch["id"][0][:, 0].tolist()]
    assert len(seen) == len(set(seen)) == 80
