"""Ambiguous digits in their published layout, mixed with MNIST, and cut so that copies stay together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data import layouts
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.dirty_mnist import AmbiguousMNIST, DirtyMNIST, add_noise, origin_of
from uncertainty_est.errors import DataError

GREY = (1, 28, 28)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """MNIST's 40 and 12 images, and 24 ambiguous ones with 10 labels, 12 of them to train."""
    layouts.write_mnist_like(tmp_path, "MNIST")
    layouts.write_ambiguous(tmp_path / "AmbiguousMNIST")
    return tmp_path


@pytest.mark.parametrize("folder", ["AmbiguousMNIST", "."])
def test_of_the_published_files_sixty_thousand_labels_are_for_training(folder: str, tmp_path: Path) -> None:
    layouts.write_ambiguous(tmp_path / folder, n=6003, train_images=None)
    source = AmbiguousMNIST(root=str(tmp_path), shape=GREY)
    source.prepare()
    assert [len(source.split(name)) for name in SPLIT_NAMES] == [54_000, 6_000, 30]
    test = source.split("test")
    assert test.x[:, 0, 0, 0].tolist() == [6000 % 256] * 10 + [6001 % 256] * 10 + [6002 % 256] * 10
    assert torch.equal(test.y, torch.arange(30) % 10)
    assert origin_of(tmp_path / folder) is None


def test_each_image_comes_with_each_of_its_labels(root: Path) -> None:
    train = AmbiguousMNIST(root=str(root), shape=GREY, val_fraction=0.0).split("train")
    level = train.x.flatten(1)
    assert (level == train.indices[:, None] // 10).all() and torch.equal(train.y, train.indices % 10)


@pytest.mark.parametrize("kind", [AmbiguousMNIST, DirtyMNIST])
@pytest.mark.parametrize("seed", range(4))
def test_no_image_is_in_two_splits(kind: type, seed: int, root: Path) -> None:
    source = kind(root=str(root), shape=GREY, split_seed=seed, val_fraction=0.25)
    train, val = source.split("train"), source.split("val")
    clean = 40 if kind is DirtyMNIST else 0
    assert sorted(torch.cat([train.indices, val.indices]).tolist()) == list(range(clean + 120))
    images = [set(((s.indices[s.indices >= clean] - clean) // 10).tolist()) for s in (train, val)]
    assert images[0].isdisjoint(images[1]) and len(images[0] | images[1]) == 12 and images[1]
    for split in (train, val):
        counts = ((split.indices[split.indices >= clean] - clean) // 10).bincount(minlength=12)
        assert set(counts.tolist()) <= {0, 10}, "an image's copies are parted"


def test_dirty_mnist_is_mnist_and_then_the_ambiguous_images(root: Path) -> None:
    source = DirtyMNIST(root=str(root), shape=GREY)
    source.prepare()
    test = source.split("test")
    assert len(test) == 12 + 120 and test.indices.tolist() == list(range(132))
    assert np.array_equal(test.x[:12, 0], layouts.images(layouts.TEST, 28, 28, seed=layouts.TEST))
    assert torch.equal(test.x[12:], AmbiguousMNIST(root=str(root), shape=GREY).split("test").x)
    few = DirtyMNIST(root=str(root), shape=(3, 14, 14), max_items=20)
    assert few.split("train").x.shape == (20, 3, 14, 14)


def test_noise_parts_the_copies_of_an_image_and_is_always_the_same(root: Path) -> None:
    source, again = (AmbiguousMNIST(root=str(root), shape=GREY, noise=0.05) for _ in range(2))
    train = source.split("train")
    assert torch.equal(train.x, again.split("train").x)
    assert len(train.x.flatten(1).unique(dim=0)) == len(train)
    assert not torch.equal(DirtyMNIST(root=str(root), shape=GREY, noise=0.05).split("test").x[:12], train.x[:12])


def test_noise_has_the_standard_deviation_of_the_normalised_image() -> None:
    x = torch.full((9000, 1, 4, 4), 128, dtype=torch.uint8)
    noise = (add_noise(x, 0.5, seed=0).double() / 255 - 128 / 255) / 0.3081
    assert noise.std() == pytest.approx(0.5, rel=0.01) and noise.mean() == pytest.approx(0, abs=0.01)
    assert add_noise(x, 0.0, seed=0) is x
    dark = add_noise(torch.zeros_like(x), 0.5, seed=0)
    assert dark.max() < 255 and (dark == 0).double().mean() == pytest.approx(0.5, abs=0.02)


def test_missing_files_name_both_remedies(tmp_path: Path) -> None:
    layouts.write_ambiguous(tmp_path / "AmbiguousMNIST")
    (tmp_path / "AmbiguousMNIST" / "amnist_labels.pt").unlink()
    for attempt in (lambda s: s.prepare(), lambda s: s.split("test")):
        with pytest.raises(DataError, match=r"AmbiguousMNIST.amnist_labels\.pt: there is no such file; get ") as error:
            attempt(DirtyMNIST(root=str(tmp_path), shape=GREY))
        assert "https://github.com/" in str(error.value)
        assert f"uncertainty_est.data.generate_ambiguous --data-root {tmp_path}" in str(error.value)


@pytest.mark.parametrize(
    ("samples", "labels", "message"),
    [
        (torch.zeros(24, 28, 28), torch.zeros(23, 10), r"must hold floats \(N, 1, 28, 28\) for the N rows"),
        (torch.zeros(24, 1, 28, 28, dtype=torch.uint8), torch.zeros(24, 10), r"must hold floats .*, got torch\.uint8"),
        (torch.zeros(24, 28, 27), torch.zeros(24, 10), r"of shape \(24, 28, 27\)"),
        (torch.zeros(24, 28, 28), torch.full((24, 10), 10), "must hold labels 0 to 9"),
        (torch.zeros(24, 28, 28), torch.zeros(24), "must hold labels 0 to 9 of shape"),
        (torch.full((24, 28, 28), -0.42), torch.zeros(24, 10), r"must hold values in \[0, 1\], neither normalised"),
        (torch.full((24, 28, 28), torch.nan), torch.zeros(24, 10), r"must hold values in \[0, 1\]"),
        ([1], torch.zeros(24, 10), "must hold one tensor, got list"),
    ],
)
def test_other_contents_are_refused(samples: object, labels: object, message: str, root: Path) -> None:
    torch.save(samples, root / "AmbiguousMNIST" / "amnist_samples.pt")
    torch.save(labels, root / "AmbiguousMNIST" / "amnist_labels.pt")
    with pytest.raises(DataError, match=message):
        AmbiguousMNIST(root=str(root), shape=GREY).split("test")


def test_damaged_files_are_refused(root: Path) -> None:
    folder = root / "AmbiguousMNIST"
    source = AmbiguousMNIST(root=str(root), shape=GREY)
    (folder / "generated.json").write_text("{}")
    with pytest.raises(DataError, match="is damaged; remove the folder and run python -m"):
        source.split("test")
    (folder / "generated.json").unlink()
    with pytest.raises(DataError, match="has 24 images, and the test part begins after 6000"):
        source.split("test")
    shutil.copy(folder / "amnist_labels.pt", folder / "generated.json")
    with pytest.raises(DataError, match="is damaged"):
        source.split("test")
    (folder / "amnist_samples.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="is damaged or no file of PyTorch; get "):
        source.split("test")


def test_noise_is_not_negative() -> None:
    for kind in (AmbiguousMNIST, DirtyMNIST):
        with pytest.raises(ValueError, match=r"noise must be at least 0, got -0\.1"):
            kind(root=".", shape=GREY, noise=-0.1)
