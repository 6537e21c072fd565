"""What ``python -m uncertainty_est.data.embed`` asks for: a run's features of data sets, as ``.npz`` files."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.data.loader import TensorLoader
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.source import SPLIT_NAMES, SplitName
from uncertainty_est.data_names import EMBEDDED_SUFFIX
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.evaluate import device_of, with_sources
from uncertainty_est.evaluation.report import check_splits
from uncertainty_est.files import make_folder, write_npz, write_text
from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.run_folder import CHECKPOINT_FILE

log = logging.getLogger(__name__)

ORIGIN_FILE = "checkpoint.sha256"


@dataclass(frozen=True)
class Request:
    """The command line, one attribute an option, and the folder of the data sets' YAML files.

    Attributes:
        run: the finished run's folder or its checkpoint file.
        source_dir: ``configs/source``.
        datasets: what to embed; empty means the run's ID set and its test OOD sets.
        output_folder: ``None`` means ``<run>/embedded``.
        device: where to compute features.
        batch_size: in place of the run's ``eval_batch_size``.
    """

    run: Path
    source_dir: Path
    datasets: Sequence[str] = ()
    output_folder: Path | None = None
    device: str = "auto"
    batch_size: int | None = None


@dataclass
class Report:
    """What came out.

    Attributes:
        folder: where the files are.
        feature_dim: D.
        files: name of a data set to its file.
        failed: name of a data set that was not embedded to the sentence that says why.
    """

    folder: Path
    feature_dim: int
    files: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def embed(request: Request) -> Report:
    """Write ``<name>_embedded.npz`` with a run's features ``[N, D]`` of every data set that was asked for.

    The in-distribution set comes in the run's own three splits. An OOD set comes with its test split and, where it has
    them, its training and validation splits. A set that cannot be read is logged and does not hinder the others.

    Raises:
        ConfigError: no such run, device or data set, a method without features, an OOD set that the run was tuned or
            trained on, or an output folder that cannot be written or belongs to another run.
        DataError: a damaged run, or an in-distribution set that is no longer the one the run was trained with.
    """
    if request.batch_size is not None and request.batch_size < 1:
        raise ConfigError(f"--batch-size: must be at least 1, got {request.batch_size}")
    device = device_of(request.device)
    loaded = checkpoints.load(request.run)
    method = loaded.method
    if not isinstance(method, CEBaseline):
        raise ConfigError(
            f"--run: {type(method).__name__} has no features that a command could export; give a run of a classifier"
            f" with one network, such as model=img_ce_baseline"
        )
    id_name = loaded.fixed["dataset"]
    names = list(dict.fromkeys(request.datasets or [id_name, *loaded.fixed["test_ood_datasets"]]))
    asked = {
        **loaded.fixed,
        "test_ood_datasets": [name for name in names if name != id_name],
        "eval_batch_size": request.batch_size or loaded.fixed["eval_batch_size"],
    }
    data = build_data(with_sources(asked, request.source_dir), own_only=True)
    data.setup("test")
    check_splits(loaded, data)
    folder = make_folder(request.output_folder or loaded.path / "embedded", "--output-folder")
    claim(folder, loaded.path)
    report = Report(folder, method.network.feature_dim)
    method.to(device)
    for name in names:
        path = folder / f"{name}{EMBEDDED_SUFFIX}.npz"
        try:
            loaders = id_loaders(data, device) if name == id_name else ood_loaders(data, name, device)
            arrays = embed_splits(method, loaders)
        except DataError as error:
            report.failed[name] = str(error)
            log.error("data set '%s' is left out: %s", name, error)
            continue
        write_npz(path, arrays)
        report.files[name] = path
        shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in arrays.items() if key.startswith("x_"))
        log.info("%s: %s", path, shapes)
    if (folder / f"{id_name}{EMBEDDED_SUFFIX}.npz").is_file():
        log.info("next: %s", " ".join(next_command(loaded.fixed, report, request.source_dir)))
    return report


def claim(folder: Path, run_dir: Path) -> None:
    """Note which weights a folder's files come from: features of two networks look alike and mean nothing together.

    Raises:
        ConfigError: the folder holds features of another run.
    """
    checkpoint = run_dir / CHECKPOINT_FILE
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    origin = folder / ORIGIN_FILE
    if not origin.is_file():
        write_text(origin, f"{digest}  {checkpoint.resolve()}\n")
    elif not origin.read_bytes().startswith(digest.encode()):
        raise ConfigError(f"--output-folder: '{folder}' holds features of another run (see {origin}); choose another")


def id_loaders(data: OODDataModule, device: str) -> dict[SplitName, TensorLoader]:
    """The run's own splits of the in-distribution set, in order and without augmentation."""
    return {split: data.plain_loader(split, device=device) for split in SPLIT_NAMES}


def ood_loaders(data: OODDataModule, name: str, device: str) -> dict[SplitName, TensorLoader]:
    """The splits of an OOD set that it has; only its test split must be there.

    Raises:
        DataError: the set cannot be read or has another shape.
    """
    source = data.ood_sources["test"][name]
    if tuple(source.shape) != data.data_shape:
        raise DataError(f"{name}: items have the shape {tuple(source.shape)}, but the run takes {data.data_shape}")
    splits = {"test": source.split("test")}
    optional: tuple[SplitName, ...] = ("train", "val")
    for split in optional:
        try:
            splits[split] = source.split(split)
        except DataError as error:
            log.info("%s: without a %s split (%s)", name, split, error)
    transform = data.transform if source.space == "raw" else None
    return {
        split: TensorLoader(splits[split], data.eval_batch_size, transform=transform, device=device)
        for split in SPLIT_NAMES
        if split in splits
    }


def embed_splits(method: CEBaseline, loaders: Mapping[SplitName, TensorLoader]) -> dict[str, np.ndarray]:
    """Features ``x_<split>: [N, D]`` float32 and labels ``y_<split>: [N]`` int64 of every split.

    Raises:
        DataError: a feature is NaN or infinite.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, loader in loaders.items():
        features, labels = features_of(method, loader)
        if not bool(features.isfinite().all()):
            raise DataError(f"the network's features of the {split} split are not all finite; train the run again")
        arrays[f"x_{split}"] = features.cpu().numpy()
        arrays[f"y_{split}"] = labels.cpu().numpy()
    return arrays


def features_of(method: CEBaseline, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` float32, as the head receives them, and labels ``[N]``, on the method's device."""
    features, labels = [], []
    with scoring_mode(method):
        for x, y in loader:
            features.append(method.outputs(x)["features"])
            labels.append(y)
    return torch.cat(features), torch.cat(labels)


def next_command(fixed: Mapping[str, Any], report: Report, source_dir: Path) -> list[str]:
    """Words of the command line that trains on the files and scores the OOD sets among them."""
    dataset = f"{fixed['dataset']}{EMBEDDED_SUFFIX}"
    words = [f"dataset={dataset}"]
    if not (source_dir.parent / "dataset" / f"{dataset}.yaml").is_file():
        words = ["dataset=digits_embedded", f"fixed.dataset={dataset}", f"fixed.num_classes={fixed['num_classes']}"]
    ood = ",".join(f"{name}{EMBEDDED_SUFFIX}" for name in report.files if name != fixed["dataset"])
    words += [
        "model=fc_ce_baseline",
        f"fixed.data_root={report.folder}",
        f"fixed.data_shape=[{report.feature_dim}]",
        f"fixed.test_ood_datasets=[{ood}]",
    ]
    return ["python", "train_local.py", *map(shlex.quote, words)]
