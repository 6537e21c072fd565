"""How well a classifier's losses on held-out data are ranked: by DEUP, TorchUncertainty's variant of it, and entropy.

    python benchmarks/deup.py [--data-root ../data] [--seeds 1] --output docs/deup.md

Spearman correlations of predicted and true loss (negative log-likelihood of the label), percent. One classifier for
each row, shared by all columns. ``cifar10.npz`` is read where it is there. Prints a Markdown table; exits with 1 where
the classifier is misspecified and DEUP does not rank its losses better than both others.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from protocol import with_error, write
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.cli import log_to_console
from uncertainty_est.data.loader import TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.data.sources.pack import NpzPack
from uncertainty_est.data.transforms import ImageTransform
from uncertainty_est.models.deup import DEUP
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.lenet import LeNet

Samples = tuple[Tensor, Tensor]
CLASSES = 4
COLUMNS: dict[str, dict[str, Any]] = {
    "TorchUncertainty's variant": {"variant": "torch_uncertainty"},
    "DEUP, algorithm 1": {"algorithm": 1},
    "DEUP, algorithm 2, samples": {"fold_mode": "stratified"},
    "DEUP, algorithm 2, classes": {"fold_mode": "class_groups", "folds": 4},
}
NOTES = """
Linear softmax classifiers of points at various distances from the origin. Misspecified: the rule of the labels turns
round beyond a distance, where a linear classifier is surest of itself. Well specified: labels are drawn from a linear
softmax. There the entropy is the loss to expect, nothing that is learned can rank better, and it costs nothing: entropy
is enough. The last rows are images like those of training, and the same with noise in half of them. Folds of samples
are for losses on data like those of training; folds of classes teach what losses unknown classes bring, for detection.
Algorithm 1 and TorchUncertainty's variant read the validation split alone, and train no network of a fold.
"""


@dataclass
class Task:
    """A classifier's training, validation and test data, in its input space."""

    name: str
    misspecified: bool
    network: Callable[[], Network]
    epochs: int
    train: Samples
    val: Samples
    test: Samples


def turning(n: int, weights: Tensor, misspecified: bool, generator: torch.Generator) -> Samples:
    """Points ``[n, D]`` at various distances, and labels drawn from a linear softmax, for far points its opposite."""
    radius = torch.rand(n, 1, generator=generator)
    x = torch.randn(n, len(weights), generator=generator) * (0.5 + 2 * radius)
    logits = x @ weights
    if misspecified:
        logits = torch.where(radius < 0.7, logits, -logits)
    return x, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def synthetic(dim: int, misspecified: bool, seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    weights = 3 * torch.randn(dim, CLASSES, generator=generator) / dim**0.5
    train, val, test = (turning(n, weights, misspecified, generator) for n in (6000, 2000, 3000))
    network = partial(FC, data_shape=[dim], num_classes=CLASSES, hidden_dims=[])
    name = f"{dim} features, {'misspecified' if misspecified else 'well specified'}"
    return Task(name, misspecified, network, 15, train, val, test)


def cifar10(data_root: Path, seed: int) -> Iterator[Task]:
    """As it is, and with noise in half of the test images."""
    source = NpzPack(root=str(data_root), name="cifar10", shape=(3, 32, 32), split_seed=seed)
    source.prepare()
    splits = [source.split(name) for name in ("train", "val", "test")]
    transform = ImageTransform(mean=0.5, std=0.25)
    transform.fit(splits[0].x)
    train, val, test = ((transform(split.x), split.y) for split in splits)
    network = partial(LeNet, data_shape=[3, 32, 32], num_classes=10)
    yield Task("CIFAR-10, LeNet", False, network, 5, train, val, test)
    noise = torch.randn(test[0].shape, generator=torch.Generator().manual_seed(seed))
    half = (torch.arange(len(noise)) % 2).view(-1, 1, 1, 1)
    noisy = (test[0] + half * noise, test[1])
    yield Task("CIFAR-10, LeNet, noise in half of the images", False, network, 5, train, val, noisy)


def trained(task: Task, seed: int) -> dict[str, Tensor]:
    """Weights of the classifier that all columns share."""
    torch.manual_seed(seed)
    network = task.network()
    optimizer = optimizer_of(network.parameters())
    loader = TensorLoader(Split(*task.train, torch.arange(len(task.train[1])), "train"), 128, shuffle=True, seed=seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * len(loader))
    for _ in range(task.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
    return network.state_dict()


optimizer_of = partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-2)


def correlations(tasks: list[Task], seed: int) -> list[dict[str, float]]:
    """Of every column for each of some tasks that differ in their test data only."""
    first = tasks[0]
    weights = trained(first, seed)
    results: list[dict[str, float]] = [{} for _ in tasks]
    for column, settings in COLUMNS.items():
        shape = list(first.train[0].shape[1:])
        common = {"fold_epochs": first.epochs, "min_jitter": 1e-3, "seed": seed, "optimizer": optimizer_of}
        method = DEUP(first.network, shape, **{**common, **settings})
        method.network.load_state_dict(weights)
        method.fit_posthoc([first.train if method.posthoc_split == "train" else first.val])
        for task, result in zip(tasks, results, strict=True):
            x, y = task.test
            prediction = method.predict(x)
            assert prediction.probs is not None
            loss = F.nll_loss(prediction.probs.double().log(), y, reduction="none")
            result["accuracy"] = 100 * float((prediction.probs.argmax(-1) == y).double().mean())
            result["entropy"] = 100 * float(spearmanr(-prediction.scores["Entropy"], loss)[0])
            result[column] = 100 * float(spearmanr(-prediction.scores["deup"], loss)[0])
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("../data"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file (default: standard output)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log_to_console(logging.WARNING)
    rows: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for seed in range(1, arguments.seeds + 1):
        groups = [[synthetic(dim, misspecified, seed)] for dim in (10, 512) for misspecified in (True, False)]
        if (arguments.data_root / "cifar10.npz").is_file():
            groups.append(list(cifar10(arguments.data_root, seed)))
        for tasks in groups:
            start = time.perf_counter()
            for task, result in zip(tasks, correlations(tasks, seed), strict=True):
                rows.setdefault((task.name, task.misspecified), []).append(result)
            sys.stderr.write(f"{tasks[0].name}, seed {seed}: {time.perf_counter() - start:.0f} s\n")
    names = ["accuracy", "entropy", *COLUMNS]
    lines = [
        "# Ranking a classifier's losses\n",
        f"| classifier | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    kept = True
    for (name, misspecified), results in rows.items():
        values = {column: [result[column] for result in results] for column in names}
        lines.append(f"| {name} | {' | '.join(with_error(values[column]) for column in names)} |")
        means = {column: sum(numbers) / len(numbers) for column, numbers in values.items()}
        others = max(means["entropy"], means["TorchUncertainty's variant"])
        kept = kept and (not misspecified or means["DEUP, algorithm 2, samples"] > others)
    write("\n".join([*lines, NOTES]), arguments.output)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
