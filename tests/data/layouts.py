"""Writers of the published file layouts, and a data set in memory."""

from __future__ import annotations

import bz2
import json
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

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.own_data import Part

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


def write_usps(root: Path) -> None:
    """Lines of a label from 1 and 256 numbered values of [-1, 1], packed."""
    for file, n in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        # A hair more than the level, which torchvision cuts to an integer.
        values = (images(n, 256, seed=n) + 1e-3) / 255 * 2 - 1
        lines = [
            " ".join([str(y), *(f"{i}:{value:.8f}" for i, value in enumerate(row, 1))])
            for y, row in zip(labels(n, 10, first=1), values, strict=True)
        ]
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))


def write_omniglot(root: Path) -> None:
    """Characters of alphabets, 105x105, black on white; the archives that they came in lie beside them."""
    folder = root / "omniglot-py"
    for part, alphabets in (("background", ("Greek", "Latin")), ("evaluation", ("Tengwar",))):
        (folder / f"images_{part}").mkdir(parents=True)
        (folder / f"images_{part}.zip").touch()
        for alphabet in alphabets:
            for character in ("character01", "character02", "character03"):
                for drawer in (1, 2):
                    picture = Image.new("1", (105, 105), 1)
                    picture.paste(0, (30, 30, 75, 75))
                    path = folder / f"images_{part}" / alphabet / character / f"0001_{drawer:02}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)


def write_pack(path: Path, shape: Sequence[int] = (32, 32, 3), classes: int = 5) -> None:
    np.savez(
        path,
        x_train=images(TRAIN, *shape),
        y_train=labels(TRAIN, classes),
        x_test=images(TEST, *shape, seed=1),
        y_test=labels(TEST, classes),
    )


# In UCI's order, which is not the order of the label numbers.
SEGMENT_NAMES = ("brickface", "sky", "foliage", "cement", "window", "path", "grass")
SEGMENT_LABELS = {"brickface": 0, "foliage": 1, "cement": 2, "window": 3, "path": 4, "grass": 5, "sky": 6}
PER_CLASS = 20


def segment_rows() -> tuple[np.ndarray, list[str]]:
    """Features ``[N, 18]`` in units of their own, whose first is the row's number, and names of classes."""
    rng = np.random.default_rng(0)
    names = [name for name in SEGMENT_NAMES for _ in range(PER_CLASS)]
    x = rng.normal(size=(len(names), 18)) * rng.lognormal(sigma=2, size=18) + rng.normal(size=18)
    x[:, 0] = np.arange(len(names))
    return np.array([[float(f"{value:.6g}") for value in row] for row in x]), names


def write_postnet_csv(path: Path, x: np.ndarray, y: np.ndarray, metadata: bool = True) -> None:
    """A header, rows of index, features and label as floats, and the numbers of rows, features and classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n, features = x.shape
    lines = ["," + ",".join(map(str, range(features + 1)))]
    for i in range(n):
        lines.append(",".join([str(i), *(repr(float(value)) for value in x[i]), f"{float(y[i])}"]))
    if metadata:
        for i, number in enumerate((n, features, len(set(y.tolist())))):
            lines.append(f"{n + i},{float(number)}" + "," * features)
    path.write_text("\n".join(lines) + "\n")


def write_segment_csv(root: Path) -> None:
    """Scaled to [0, 1] over all rows but the sky's, in an order of their own, sky in a file of its own."""
    x, names = segment_rows()
    order = np.random.default_rng(1).permutation(len(x))
    x, y = x[order], np.array([SEGMENT_LABELS[names[i]] for i in order])
    sky = y == 6
    low, high = x[~sky].min(0), x[~sky].max(0)
    x = (x - low) / (high - low)
    write_postnet_csv(root / "segment" / "segment_scale_sky_missing.csv", x[~sky], y[~sky])
    write_postnet_csv(root / "segment" / "segment_scale_sky_only.csv", x[sky], y[sky])


def _segment_files(root: Path, files: tuple[str, str], seed: int) -> list[tuple[Path, list[tuple[str, str]]]]:
    """For two files their path, and name of class and the 19 features as text of every row."""
    (root / "segment").mkdir(parents=True, exist_ok=True)
    x, names = segment_rows()
    x = np.insert(x, 2, 9, axis=1)  # region-pixel-count
    order = np.random.default_rng(seed).permutation(len(x))
    parts = (order[: len(x) // 4], order[len(x) // 4 :])
    return [
        (root / "segment" / file, [(names[i], ",".join(f"{value:.6g}" for value in x[i])) for i in rows])
        for file, rows in zip(files, parts, strict=True)
    ]


def write_segment_uci(root: Path) -> None:
    """Two lines of remarks, the features' names and two blank lines, then rows with the class in capitals in front."""
    for path, rows in _segment_files(root, ("segmentation.data", "segmentation.test"), seed=2):
        header = [";;; -*- remarks -*-", ";;; more remarks", "", ",".join(f"FEATURE-{i}" for i in range(19)), ""]
        path.write_text("\n".join([*header, *(f"{name.upper()},{row}" for name, row in rows)]) + "\n")


def write_segment_arff(root: Path) -> None:
    """Remarks after per cent signs, the attributes, then rows with the class at the end."""
    for path, rows in _segment_files(root, ("segment-challenge.arff", "segment-test.arff"), seed=3):
        attributes = [f"@attribute feature-{i} numeric" for i in range(19)]
        classes = f"@attribute class {{{','.join(SEGMENT_NAMES)}}}"
        header = ["% remarks, with commas", "%", "@relation segment", "", *attributes, classes, "", "@data", ""]
        path.write_text("\n".join([*header, *(f"{row},{name}" for name, row in rows)]) + "\n")


SENSORLESS, SENSORLESS_SUBSET = "Sensorless_drive_diagnosis.txt", "Sensorless_drive_diagnosis.subset.txt"


def write_sensorless(root: Path, file: str = SENSORLESS, more: int = 0) -> np.ndarray:
    """`PER_CLASS` rows of each of the classes 1 to 11 and `more` of 1 and 2, by class; ``[N, 49]`` as written.

    The first feature is the row's number.
    """
    (root / "sensorless").mkdir(parents=True, exist_ok=True)
    y = np.repeat(np.arange(1, 12), [PER_CLASS + more, PER_CLASS + more, *[PER_CLASS] * 9])
    table = np.column_stack([np.random.default_rng(4).standard_t(2, size=(len(y), 48)) * 1e-3, y])
    table[:, 0] = np.arange(len(y))
    np.savetxt(root / "sensorless" / file, table, fmt=["%.5g"] * 48 + ["%d"])
    return np.loadtxt(root / "sensorless" / file)


def write_gaussian2d(root: Path) -> None:
    rng = np.random.default_rng(5)
    y, ring = np.arange(90) % 3, np.arange(400) % 40
    write_postnet_csv(root / "gaussian2d" / "2DGaussians-0.2.csv", rng.normal(size=(90, 2)), y)
    write_postnet_csv(root / "gaussian2d" / "anomalous-2Ddataset.csv", rng.normal(size=(400, 2)) + 15, ring)


def write_ambiguous(folder: Path, n: int = 24, per_image: int = 10, train_images: int | None = 12) -> None:
    """As published: `n` images of a level of their own, and as many labels; with `train_images` as if generated."""
    folder.mkdir(parents=True, exist_ok=True)
    x = torch.arange(n).remainder(256).view(-1, 1, 1, 1).expand(-1, 1, 28, 28) / 255
    torch.save(x.contiguous(), folder / "amnist_samples.pt")
    torch.save(torch.arange(n * per_image).view(n, per_image) % 10, folder / "amnist_labels.pt")
    if train_images is not None:
        (folder / "generated.json").write_text(json.dumps({"seed": 1, "train_images": train_images}))


OWN_PATHS = {"folder": "own/images", "npz": "own/pack.npz", "table": "own/table.csv"}


def write_own(root: Path) -> None:
    """Data sets of one's own, in each of the forms that they can have."""
    for c, name in enumerate(("bolts", "nuts")):
        folder = root / OWN_PATHS["folder"] / name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(images(20, 7, 9, 3, seed=c)):
            Image.fromarray(pixels).save(folder / f"{number}.png")
    write_pack(root / OWN_PATHS["npz"])
    rows = [f"{a},{b},{'bolts' if a > b else 'nuts'}" for a, b in images(TRAIN, 2).tolist()]
    (root / OWN_PATHS["table"]).write_text("\n".join(["length,width,label", *rows]))


def write_folders(root: Path, folders: Sequence[str], images: int = 10, size: tuple[int, int] = (32, 32)) -> None:
    """Plain pictures of levels 0, 1, … in each of some folders."""
    for folder in folders:
        for number in range(images):
            write_image(root / folder / f"{number}.png", number, size)


def write_odin_release(root: Path) -> None:
    """Five archives, each with one folder in its folder."""
    inner = ("Imagenet/test", "LSUN/test", "Imagenet_resize/Imagenet_resize", "LSUN_resize/LSUN_resize")
    write_folders(root, [*inner, "iSUN/iSUN_patches"])


def write_notmnist(root: Path) -> None:
    """Ten letters; the two files that are empty in the published archive are so here."""
    write_folders(root, [f"notMNIST_small/{letter}" for letter in "ABCDEFGHIJ"], images=2, size=(28, 28))
    for file in ("A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png"):
        (root / "notMNIST_small" / file).touch()


def write_tiny_imagenet(root: Path) -> None:
    """Three classes: train/<class>/images, val/images with a table of classes, test/images without any."""
    folder = root / "tiny-imagenet-200"
    classes = ("n01443537", "n01629819", "n01641577")
    write_folders(folder, [f"train/{name}/images" for name in classes], size=(64, 64))
    write_folders(folder, ["val/images", "test/images"], images=6, size=(64, 64))
    lines = [f"{number}.png\t{classes[2 - number % 3]}\t0\t0\t62\t62" for number in range(6)]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


OPENOOD_SETS = ("ssb_hard/n04542943", "ninco/amphiuma_means", "inaturalist/images", "openimage_o/images")


def write_openood_images(root: Path) -> None:
    """Folders of the ImageNet benchmark, without its lists."""
    large = root / "images_largescale"
    write_folders(large, OPENOOD_SETS, size=(50, 40))
    write_folders(large, [f"imagenet_1k/{part}/{c}" for part in ("train", "val") for c in ("n01440764", "n01443537")])


def write_openood_lists(root: Path) -> None:
    """Lists of every part of ImageNet and its OOD sets, of a few of the images; of 200 classes' as well."""
    rng = np.random.default_rng(0)
    for benchmark in ("imagenet", "imagenet200"):
        folder = root / "benchmark_imglist" / benchmark
        folder.mkdir(parents=True)
        lists = {
            f"test_{name.split('/')[0]}": [f"{name}/{i} -1" for i in rng.permutation(10)[:8]] for name in OPENOOD_SETS
        }
        lists["val_openimage_o"] = [
            line for i in range(10) if (line := f"openimage_o/images/{i} -1") not in lists["test_openimage_o"]
        ]
        for part, numbers in (("train", range(10)), ("val", range(5)), ("test", range(5, 10))):
            own = "train" if part == "train" else "val"
            lists[f"{part}_{benchmark}"] = [
                f"imagenet_1k/{own}/{c}/{i} {y}" for y, c in enumerate(("n01440764", "n01443537")) for i in numbers
            ]
        for name, lines in lists.items():
            text = "\n".join(line.replace(" ", ".png ") for line in lines)
            (folder / f"{name}.txt").write_text(text + "\n")


def write_corrupted_cifar(root: Path, classes: int, n: int = 6) -> None:
    """Two corruptions of `n` images: the level of a picture is 100 * corruption + 10 * severity + number."""
    folder = root / f"CIFAR-{classes}-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels(n, classes), 5).astype(np.uint8))
    for number, name in enumerate(("fog", "snow")):
        level = 100 * number + 10 * np.repeat(np.arange(1, 6), n) + np.tile(np.arange(n), 5)
        np.save(
            folder / f"{name}.npy", np.broadcast_to(level[:, None, None, None], (5 * n, 32, 32, 3)).astype(np.uint8)
        )


def write_all(root: Path) -> None:
    write_own(root)
    for seed, name in enumerate(("MNIST", "FashionMNIST", "KMNIST")):
        write_mnist_like(root, name, seed)
    write_emnist_letters(root)
    write_cifar(root, 10)
    write_cifar(root, 100)
    write_svhn(root)
    write_textures(root)
    write_usps(root)
    write_omniglot(root)
    write_odin_release(root)
    write_notmnist(root)
    write_tiny_imagenet(root)
    write_openood_images(root)
    write_openood_lists(root)
    write_folders(root, ["celeba/img_align_celeba", "val_256"], size=(40, 50))
    write_corrupted_cifar(root, 10)
    write_corrupted_cifar(root, 100)
    write_pack(root / "tiny_imagenet32.npz")
    write_segment_csv(root)
    write_segment_uci(root)
    write_segment_arff(root)
    write_sensorless(root, SENSORLESS_SUBSET, more=7)
    write_gaussian2d(root)
    write_ambiguous(root / "AmbiguousMNIST")


def write_image(path: Path, level: int, size: tuple[int, int] = (40, 36), mode: str = "RGB") -> None:
    """One plain picture of a grey level; ``size`` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(path)
