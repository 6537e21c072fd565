"""Writers of the published file layouts, and a data set in memory."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from uncertainty_est.data.source import Part, PartitionedSource

TRAIN, TEST = 40, 12


@dataclass(eq=False)
class Memory(PartitionedSource):
    """Rows that carry their own position, in one part or two; counts how often each part is loaded."""

    name = "memory"
    sizes: dict[str, int]
    num_classes: int = 3
    shape: Sequence[int] = field(default=(2,), kw_only=True)
    val_fraction: float = field(default=0.2, kw_only=True)
    loads: list[str] = field(default_factory=list, init=False)

    @property
    def official_test(self) -> bool:  # type: ignore[override]
        return "all" not in self.sizes

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        self.loads.append(part)
        n = self.sizes[part]
        position = torch.arange(n)
        return torch.stack([position, -position], dim=1).float(), position % self.num_classes


def images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int, classes: int, first: int = 0) -> np.ndarray:
    return np.arange(n) % classes + first


def write_idx(path: Path, array: np.ndarray) -> None:
    """The idx format of the MNIST family: magic number, sizes (big endian), bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist_like(root: Path, name: str, seed: int = 0) -> None:
    for stem, n in (("train", TRAIN), ("t10k", TEST)):
        write_idx(root / name / "raw" / f"{stem}-images-idx3-ubyte", images(n, 28, 28, seed=seed + n))
        write_idx(root / name / "raw" / f"{stem}-labels-idx1-ubyte", labels(n, 10))


def write_emnist_letters(root: Path) -> None:
    for stem, n in (("train", TRAIN), ("test", TEST)):
        folder = root / "EMNIST" / "raw"
        write_idx(folder / f"emnist-letters-{stem}-images-idx3-ubyte", images(n, 28, 28, seed=n))
        write_idx(folder / f"emnist-letters-{stem}-labels-idx1-ubyte", labels(n, 26, first=1))


def write_cifar(root: Path, classes: int) -> None:
    ten = classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    key = "labels" if ten else "fine_labels"
    train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    test = "test_batch" if ten else "test"
    for number, name in enumerate([*train, test]):
        n = TEST if name == test else TRAIN // len(train)
        batch = {"data": images(n, 3072, seed=number), key: labels(n, classes).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {("label_names" if ten else "fine_label_names"): [str(c) for c in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta))


def write_svhn(root: Path) -> None:
    for part, n in (("train", TRAIN), ("test", TEST)):
        content = {"X": images(32, 32, 3, n, seed=n), "y": labels(n, 10, first=1)[:, None].astype(np.uint8)}
        scipy.io.savemat(root / f"{part}_32x32.mat", content)


def write_textures(root: Path) -> None:
    """Two classes of plain pictures, not square, whose grey level tells subset and class."""
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, subset in enumerate(("train", "val", "test")):
        lines = []
        for c, name in enumerate(("banded", "zigzagged")):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(6):
                file = f"{name}/{name}_{subset}{i}.jpg"
                Image.new("RGB", (50 + i, 40), (100 * c + 30 * number,) * 3).save(folder / "images" / file)
                lines.append(file)
        (folder / "labels" / f"{subset}1.txt").write_text("\n".join(lines) + "\n")


def write_pack(path: Path, shape: Sequence[int] = (32, 32, 3), classes: int = 5) -> None:
    np.savez(
        path,
        x_train=images(TRAIN, *shape),
        y_train=labels(TRAIN, classes),
        x_test=images(TEST, *shape, seed=1),
        y_test=labels(TEST, classes),
    )


def write_all(root: Path) -> None:
    for seed, name in enumerate(("MNIST", "FashionMNIST", "KMNIST")):
        write_mnist_like(root, name, seed)
    write_emnist_letters(root)
    write_cifar(root, 10)
    write_cifar(root, 100)
    write_svhn(root)
    write_textures(root)
    write_pack(root / "tiny_imagenet32.npz")
