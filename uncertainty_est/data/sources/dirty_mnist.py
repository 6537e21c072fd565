"""Ambiguous digits, each with several labels, alone and mixed with MNIST."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.published import TorchvisionImages
from uncertainty_est.data.sources.shapes import check_image_shape, fit_images
from uncertainty_est.errors import DataError
from uncertainty_est.own_data import Part

log = logging.getLogger(__name__)

FOLDER = "AmbiguousMNIST"
SAMPLES_FILE, LABELS_FILE = "amnist_samples.pt", "amnist_labels.pt"
# Beside files that the command generated: how, and where their test part begins.
ORIGIN_FILE = "generated.json"

_PAGE = "https://github.com/BlackHC/ddu_dirty_mnist/releases"
_COMMAND = "python -m uncertainty_est.data.generate_ambiguous"
_SIZE = (1, 28, 28)
_CLASSES = 10
# Of the published files; their other labels are the test part's.
_TRAIN_LABELS = 60_000
# Values may miss [0, 1] by this much, which rounding to levels hides.
_TOLERANCE = 1e-3
# Standard deviation of MNIST's pixels on the scale [0, 1], the unit of the noise.
_PIXEL_STD = 0.3081
_CHUNK = 8192
_READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)


class AmbiguousFiles(NamedTuple):
    """What the files hold.

    Attributes:
        images: ``[N, 1, 28, 28]`` uint8.
        labels: ``[N, L]`` int64, L labels for each image.
        train_images: the first so many images are the training part, the others the test part.
    """

    images: Tensor
    labels: Tensor
    train_images: int


@dataclass(eq=False, kw_only=True)
class AmbiguousMNIST(PartitionedSource):
    r"""Images between two digits, each as often as it has labels, which are drawn from how probable the digits are.

    The published set has 6,000 images with 10 labels to train and 6,000 to test. Its two files are read from
    ``<root>/AmbiguousMNIST`` or ``<root>``; ``python -m uncertainty_est.data.generate_ambiguous`` writes a set of one's
    own in the same layout. All copies of an image are in the same split.

    Args:
        root: folder of the files.
        shape: ``(C, H, W)``.
        noise: standard deviation of the Gaussian noise that each copy gets, in units of normalised images (0.3081 of
            the range of levels); levels stay within 0..255. The published package adds 0.05, DDU's training none.

    References:
        Mukhoti et al., arXiv:2102.11582, Section 5.1 and its appendix.

    Raises:
        ValueError: negative noise.
    """

    name = FOLDER
    root: str
    noise: float = 0.0
    official_test = True
    test_fraction: float = field(default=0.0, init=False)
    _copies: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    def prepare(self) -> None:
        """Check that the files are there.

        Raises:
            DataError: they are not.
        """
        check_image_shape(self.shape, self.name)
        find_files(Path(self.root))

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        check_image_shape(self.shape, self.name)
        files = read_files(Path(self.root))
        chosen = slice(files.train_images) if part == "train" else slice(files.train_images, None)
        labels = files.labels[chosen]
        self._copies = labels.shape[1]
        copies = files.images[chosen].repeat_interleave(self._copies, dim=0)
        x = add_noise(copies, self.noise, seed=["train", "test"].index(part))
        return fit_images(x, self.shape, self.name), labels.flatten()

    def groups(self, part: Part, n: int) -> np.ndarray:
        return np.arange(n) // self._copies


@dataclass(eq=False, kw_only=True)
class DirtyMNIST(PartitionedSource):
    """MNIST, and after it :class:`AmbiguousMNIST`, whose copies of one image are in the same split.

    As published, 60,000 and 60,000 items to train, 10,000 and 60,000 to test.

    Args:
        root: folder of the files of both.
        shape: ``(C, H, W)``.
        noise: of :class:`AmbiguousMNIST`, on all items.

    References:
        Mukhoti et al., arXiv:2102.11582, Section 5.1.

    Raises:
        ValueError: negative noise.
    """

    name = "DirtyMNIST"
    root: str
    noise: float = 0.0
    official_test = True
    test_fraction: float = field(default=0.0, init=False)
    _clean_items: dict[Part, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._clean = TorchvisionImages("MNIST", self.root, shape=_SIZE)
        self._ambiguous = AmbiguousMNIST(root=self.root, shape=self.shape, noise=self.noise)

    def prepare(self) -> None:
        """Check that the ambiguous images' files are there, and download MNIST, unless its are.

        Raises:
            DataError: a file can neither be found nor downloaded.
        """
        self._ambiguous.prepare()
        self._clean.prepare()

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        check_image_shape(self.shape, self.name)
        more_x, more_y = self._ambiguous.load(part)
        x, y = self._clean.load(part)
        self._clean_items[part] = len(y)
        x = fit_images(add_noise(x, self.noise, seed=["train", "test"].index(part) + 2), self.shape, self.name)
        return torch.cat([x, more_x]), torch.cat([y, more_y])

    def groups(self, part: Part, n: int) -> np.ndarray:
        clean = self._clean_items[part]
        return np.concatenate([np.arange(clean), clean + self._ambiguous.groups(part, n - clean)])


def find_files(root: Path) -> Path:
    """The folder of the two files, ``<root>/AmbiguousMNIST`` or `root` itself.

    Raises:
        DataError: neither has both.
    """
    folders = [root / FOLDER, root]
    for folder in folders:
        if all((folder / file).is_file() for file in (SAMPLES_FILE, LABELS_FILE)):
            return folder
    missing = next(file for file in (SAMPLES_FILE, LABELS_FILE) if not (folders[0] / file).is_file())
    raise DataError(f"{folders[0] / missing}: there is no such file; {_remedy(root)}")


def read_files(root: Path) -> AmbiguousFiles:
    """Both files, checked.

    Raises:
        DataError: one is missing, damaged or holds something else.
    """
    folder = find_files(root)
    path = folder / SAMPLES_FILE
    samples, labels = _tensor(path, root), _tensor(folder / LABELS_FILE, root)
    images = samples.unsqueeze(1) if samples.ndim == 3 else samples
    if not images.is_floating_point() or tuple(images.shape[1:]) != _SIZE or labels.shape[:1] != images.shape[:1]:
        raise DataError(
            f"{path}: must hold floats (N, 1, 28, 28) for the N rows of {LABELS_FILE}, got {images.dtype} of shape"
            f" {tuple(samples.shape)} and labels of shape {tuple(labels.shape)}; {_remedy(root)}"
        )
    if labels.ndim != 2 or not labels.numel() or not bool(((labels >= 0) & (labels < _CLASSES)).all()):
        raise DataError(
            f"{folder / LABELS_FILE}: must hold labels 0 to 9 of shape (N, labels of one image), got"
            f" {labels.dtype} of shape {tuple(labels.shape)}; {_remedy(root)}"
        )
    if not bool(((images >= -_TOLERANCE) & (images <= 1 + _TOLERANCE)).all()):
        raise DataError(f"{path}: must hold values in [0, 1], neither normalised nor NaN; {_remedy(root)}")
    origin = origin_of(folder)
    log.info("%s: %s", folder, f"generated with seed {origin['seed']}" if origin else "files as published")
    train_images = origin["train_images"] if origin else _TRAIN_LABELS // labels.shape[1]
    if not 0 < train_images < len(images):
        raise DataError(
            f"{path}: has {len(images)} images, and the test part begins after {train_images}, so one of the parts is"
            f" empty; {_remedy(root)}"
        )
    return AmbiguousFiles((images * 255).round().clamp(0, 255).to(torch.uint8), labels.long(), train_images)


def origin_of(folder: Path) -> dict[str, Any] | None:
    """How the files of a folder were generated; ``None`` of files that were not.

    Raises:
        DataError: the file that says so is damaged.
    """
    path = folder / ORIGIN_FILE
    if not path.is_file():
        return None
    try:
        origin = json.loads(path.read_text())
        return origin | {"seed": int(origin["seed"]), "train_images": int(origin["train_images"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged; remove the folder and run {_COMMAND} again") from error


def add_noise(x: Tensor, std: float, *, seed: int) -> Tensor:
    """Images ``[N, C, H, W]`` uint8 with Gaussian noise of `std` normalised units, drawn by `seed`, in 0..255."""
    if not std:
        return x
    generator = torch.Generator().manual_seed(seed)
    levels = 255 * _PIXEL_STD * std
    noisy = (part + levels * torch.randn(part.shape, generator=generator) for part in x.split(_CHUNK))
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in noisy])


def _tensor(path: Path, root: Path) -> Tensor:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: is damaged or no file of PyTorch; {_remedy(root)}") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{path}: must hold one tensor, got {type(content).__name__}; {_remedy(root)}")
    return content


def _remedy(root: Path) -> str:
    return (
        f"get {SAMPLES_FILE} and {LABELS_FILE} from {_PAGE} and put them into {root / FOLDER}, or make a set of your"
        f" own with {_COMMAND} --data-root {root}"
    )
