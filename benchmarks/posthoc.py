"""Post-hoc scores against pytorch-ood's: time of Mahalanobis distances, and images that eight scores forward.

    python benchmarks/posthoc.py

pytorch-ood is needed beside this package (``pip install -e '.[scores]'``). Both sides get the same features and
weights, and distances are checked to agree. Its benchmark runs with its cache of logits and features. Prints Markdown
tables; exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pytorch_ood import detector as theirs
from pytorch_ood.benchmark import Benchmark
from timing import seconds
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from uncertainty_est.evaluation.reading import Reading, fit_scores
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.lenet import LeNet
from uncertainty_est.posthoc.base import scores_named

FEATURES, BATCH = 512, 512
PROMISED = {10: 10.0, 100: 100.0}  # number of classes to least speed-up
TOLERANCE = 1e-4
SETS = ("one", "two", "three", "four")
SCORES = ("msp", "energy", "entropy", "gen", "mahalanobis", "knn:k=50", "vim:dim=32", "dice:percentile=70")


def time_distances(classes: int, repeats: int) -> tuple[float, float, float, float]:
    """Medians of theirs and ours in seconds of CPU time, the median ratio, and the largest relative difference."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(20_000) % classes
    mix = torch.randn(FEATURES, FEATURES, generator=generator) / FEATURES**0.5 / 2
    centres = 2 * torch.randn(classes, FEATURES, generator=generator)
    z = torch.randn(len(y), FEATURES, generator=generator) @ (mix + torch.eye(FEATURES)) + centres[y]
    x = torch.randn(BATCH, FEATURES, generator=generator) + centres[y[:BATCH]]
    detector = theirs.Mahalanobis(None).fit_features(z, y)
    (score,) = scores_named(["mahalanobis"])
    head = nn.Linear(FEATURES, classes)
    logits = torch.empty(len(x), classes)
    score.fit(z, head(z).detach(), y, head)

    # Theirs is half of a distance by the scatter, which is the covariance times the number of samples.
    other, own = 2 * len(z) * detector.predict_features(x).double(), -score.score(x, logits)
    pairs = []
    for _ in range(5):  # in turns, so that a machine that slows down slows both
        slow = seconds(lambda: detector.predict_features(x), max(1, repeats // 5), 1, time.process_time)
        pairs.append((slow, seconds(lambda: score.score(x, logits), repeats, 2, time.process_time)))
    there, here = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    return there, here, ratio, float((other / own - 1).abs().max())


@dataclass
class Images:
    """Random training images and test sets; all are of the same size."""

    n: int

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        return torch.randn(self.n, 1, 28, 28, generator=generator), torch.arange(self.n) % 10

    def batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.of(name)
        return zip(x.split(BATCH), y.split(BATCH), strict=True)

    def plain_loader(self, split: str, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches(split)


class TheirBenchmark(Benchmark):
    """Each test set is the ID set and one OOD set, as in all benchmarks of the package."""

    ood_names = list(SETS)

    def __init__(self, images: Images) -> None:
        self.images = images

    def train_set(self) -> Dataset:
        return TensorDataset(*self.images.of("train"))

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset]:
        ood = [TensorDataset(x, torch.full_like(y, -1)) for x, y in map(self.images.of, SETS)]
        return [ConcatDataset([TensorDataset(*self.images.of("test")), one]) for one in ood]


class Encoder(nn.Module):
    """Features of a network, as one module that caches know again."""

    def __init__(self, network: LeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def count_images(n: int) -> dict[str, tuple[int, int]]:
    """Images that went through the network, for fits and for scores, theirs and ours."""
    torch.manual_seed(0)
    network = LeNet(data_shape=(1, 28, 28), num_classes=10).eval()
    forwarded: list[int] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, args, output: forwarded.append(len(output)))
    images, encoder, head = Images(n), Encoder(network), network.head

    benchmark = TheirBenchmark(images)
    # Mahalanobis distances and neighbours take labels and features that a network without training has as well.
    fitted = [
        theirs.Mahalanobis(encoder),
        theirs.KNN(encoder, k=50),
        theirs.ViM(encoder, 32, head.weight, head.bias),
        theirs.DICE(encoder, head.weight, head.bias, p=0.7),
    ]
    with torch.no_grad():
        for detector in fitted:
            detector.to("cpu").fit(DataLoader(benchmark.train_set(), batch_size=BATCH))
        fits = sum(forwarded)
        forwarded.clear()
        kinds = (theirs.MaxSoftmax, theirs.EnergyBased, theirs.Entropy, theirs.GEN)
        benchmark.evaluate([kind(network) for kind in kinds] + fitted, {"batch_size": BATCH}, cache=True)
    counts = {"pytorch-ood": (fits, sum(forwarded))}

    forwarded.clear()
    method = CEBaseline(network)
    scores, failed = fit_scores(scores_named(SCORES), method, images, "cpu")  # type: ignore[arg-type]
    assert not failed
    fits = sum(forwarded)
    forwarded.clear()
    for name in ("test", *SETS):
        score_loader(method, images.batches(name), reading=Reading(method, scores=scores))
    return counts | {"ours": (fits, sum(forwarded))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000, help="of every set")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = True
    print(f"Mahalanobis distances, {FEATURES} features, batch {BATCH}, {arguments.threads} thread(s); ms of CPU time\n")
    print("| classes | pytorch-ood | ours | ratio | promised | largest difference, relative |")
    print("|---|---|---|---|---|---|")
    for classes, promised in PROMISED.items():
        there, here, ratio, difference = time_distances(classes, arguments.repeats)
        kept = kept and ratio >= promised and difference <= TOLERANCE
        print(
            f"| {classes} | {1e3 * there:.2f} | {1e3 * here:.2f} | {ratio:.0f} | {promised:.0f} | {difference:.0e} |",
            flush=True,
        )
    needed = arguments.images * (1 + len(SETS))
    print(f"\n{len(SCORES)} scores on {len(SETS)} OOD sets: images forwarded / needed\n")
    print("| | to fit | to score | promised |")
    print("|---|---|---|---|")
    for name, (fits, scored) in count_images(arguments.images).items():
        promised = "1.00" if name == "ours" else ""
        kept = kept and (name != "ours" or (fits == arguments.images and scored == needed))
        print(f"| {name} | {fits / arguments.images:.2f} | {scored / needed:.2f} | {promised} |")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
