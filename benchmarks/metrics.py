"""All metrics of five scores at once, against TorchUncertainty's one score at a time, in the same process.

Then the five detection metrics of one score of a million inputs, against sorting them once, and against others.

    python benchmarks/metrics.py

TorchUncertainty is needed beside this package (``pip install torch-uncertainty``). Times detection, selective
classification with and without OOD inputs, and calibration, and checks that both say the same. Prints Markdown tables;
exits with 1 where they do not agree or a promise is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from timing import seconds
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from uncertainty_est.metrics.calibration import classification_metrics
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.metrics.selective import scod_metrics, selective_metrics

SCORES, CLASSES = 5, 10
# Areas are sums to coverage 0 here, and trapezoids from 1 / N on there, in float32.
TOLERANCE = 2e-3
Numbers = dict[str, np.ndarray]


class Inputs:
    """Predictions on N ID and N OOD inputs, with scores that know something of both kinds of errors."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        logits = 3 * rng.standard_normal((n, CLASSES))
        self.probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.labels = (self.probs.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=CLASSES - 1)
        self.errors = self.probs.argmax(axis=1) != self.labels
        noise = rng.standard_normal((2, SCORES, n)) * np.arange(1, SCORES + 1)[:, None]
        self.known, self.unknown = noise[0] - self.errors, noise[1] - 2


def ours_detection(i: Inputs) -> Numbers:
    each = [ood_metrics(known, unknown) for known, unknown in zip(i.known, i.unknown, strict=True)]
    return {name: np.array([e[name] for e in each]) for name in each[0]}


def ours_selective(i: Inputs) -> Numbers:
    return selective_metrics(i.known, i.errors)


def ours_scod(i: Inputs) -> Numbers:
    return scod_metrics(i.known, i.errors, i.unknown)


def ours_calibration(i: Inputs) -> Numbers:
    return {name: np.array(value) for name, value in classification_metrics(i.probs, i.labels).items()}


def computed(metrics: dict[str, Metric], *arguments: torch.Tensor) -> dict[str, float]:
    for metric in metrics.values():
        metric.update(*arguments)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def stacked(each: list[dict[str, float]]) -> Numbers:
    return {name: np.array([e[name] for e in each]) for name in each[0]}


def theirs_detection(i: Inputs) -> Numbers:
    from torch_uncertainty.metrics.classification import FPR95

    is_id = torch.cat([torch.ones(i.known.shape[1]), torch.zeros(i.unknown.shape[1])]).long()
    each = []
    for known, unknown in zip(i.known, i.unknown, strict=True):
        # Within [0, 1], or torchmetrics would apply a sigmoid, which ties float32.
        score = torch.from_numpy(np.r_[known, unknown]).mul(0.02).add(0.5)
        each.append(
            computed(
                {"AUROC": BinaryAUROC(), "AUPR-IN": BinaryAveragePrecision(), "FPR95": FPR95(pos_label=1)}, score, is_id
            )
            | computed({"AUPR-OUT": BinaryAveragePrecision()}, 1 - score, 1 - is_id)
        )
    return stacked(each)


def theirs_selective(i: Inputs) -> Numbers:
    from torch_uncertainty.metrics.classification import AUGRC, AURC, CovAt5Risk, RiskAt80Cov

    # Its metrics make the score of probabilities: of two classes, the first of which always has the larger one.
    targets = torch.from_numpy(i.errors).long()
    each = []
    for known in i.known:
        confidence = torch.from_numpy(known).mul(0.01).add(0.75)
        metrics = {"AURC": AURC(), "AUGRC": AUGRC(), "Cov@5Risk": CovAt5Risk(), "Risk@80Cov": RiskAt80Cov()}
        each.append(computed(metrics, torch.stack([confidence, 1 - confidence], dim=1), targets))
    return stacked(each)


def theirs_scod(i: Inputs) -> Numbers:
    from torch_uncertainty.metrics import classification as tu

    n, m = i.known.shape[1], i.unknown.shape[1]
    errors = torch.from_numpy(np.r_[i.errors, np.zeros(m, dtype=bool)])
    is_ood = torch.cat([torch.zeros(n), torch.ones(m)]).bool()
    each = []
    for known, unknown in zip(i.known, i.unknown, strict=True):
        metrics = {
            "AURC": tu.SCODAURC(),
            "AUGRC": tu.SCODAUGRC(),
            # Both errors cost 1/2 there, and 1 here.
            "Cov@5Risk": tu.SCODCovAtxRisk(0.025),
            "Risk@80Cov": tu.SCODRiskAtxCov(0.8),
        }
        values = computed(metrics, torch.from_numpy(-np.r_[known, unknown]), errors, is_ood)
        each.append({name: value if name == "Cov@5Risk" else 2 * value for name, value in values.items()})
    return stacked(each)


def theirs_calibration(i: Inputs) -> Numbers:
    from torch_uncertainty.metrics import classification as tu

    # Its SmoothCalibrationError refuses float64.
    probs, labels = torch.from_numpy(i.probs).float(), torch.from_numpy(i.labels)
    metrics = {
        "NLL": tu.CategoricalNLL(),
        "Brier": tu.BrierScore(CLASSES),
        "ECE": tu.CalibrationError("multiclass", num_classes=CLASSES, num_bins=15),
        "SmECE": tu.SmoothCalibrationError(kernel_type="reflected"),
    }
    return {name: np.array(value) for name, value in computed(metrics, probs, labels).items()}


PARTS: dict[str, tuple[Callable[[Inputs], Numbers], Callable[[Inputs], Numbers]]] = {
    "detection": (ours_detection, theirs_detection),
    "selective classification": (ours_selective, theirs_selective),
    "with OOD inputs (SCOD)": (ours_scod, theirs_scod),
    "calibration (of one set of probabilities)": (ours_calibration, theirs_calibration),
}


def torch_sort(known: np.ndarray, unknown: np.ndarray) -> Callable[[], object]:
    scores = torch.from_numpy(np.r_[known, unknown])
    return lambda: torch.sort(scores)


def scikit_learn(known: np.ndarray, unknown: np.ndarray) -> Callable[[], object]:
    scores, is_id = np.r_[known, unknown], np.r_[np.ones(len(known)), np.zeros(len(unknown))]

    def run() -> list[float]:
        fpr, tpr, _ = roc_curve(is_id, scores, drop_intermediate=False)
        return [
            roc_auc_score(is_id, scores),
            average_precision_score(is_id, scores),
            average_precision_score(1 - is_id, -scores),
            fpr[np.searchsorted(tpr, 0.95)],
            ((1 - tpr + fpr) / 2).min(),
        ]

    return run


def torch_uncertainty(known: np.ndarray, unknown: np.ndarray) -> Callable[[], object]:
    inputs = Inputs(1)
    inputs.known, inputs.unknown = known[None], unknown[None]
    return lambda: theirs_detection(inputs)


# What else is done with the same scores, and by what factor of its time ours may take.
PROMISED: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Callable[[], object]], float]] = {
    "one torch.sort": (torch_sort, 1.15),
    "scikit-learn": (scikit_learn, 1 / 4),
    "TorchUncertainty": (torch_uncertainty, 1 / 2),
}


def one_large_score(n: int, repeats: int) -> bool:
    """Prints a table of one score of `n` inputs, half of them ID; returns whether promises are kept."""
    noise = np.random.default_rng(0).standard_normal((2, n // 2))
    known, unknown = noise[0] + 1, noise[1]
    kept = True
    print(f"\nFive detection metrics of one score, {n // 2} ID and {n // 2} OOD inputs; ms, the median\n")
    print("| against | there | ours | ours / theirs | promised |")
    print("|---|---|---|---|---|")
    for name, (make, promised) in PROMISED.items():
        other = make(known, unknown)
        pairs = [(seconds(other), seconds(lambda: ood_metrics(known, unknown))) for _ in range(repeats + 1)][1:]
        ratio = statistics.median(ours / theirs for theirs, ours in pairs)
        kept = kept and ratio <= promised
        theirs, ours = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {theirs:.0f} | {ours:.0f} | {ratio:.2f} | {promised:.2f} |")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000, help="ID inputs, and as many OOD inputs")
    parser.add_argument("--large", type=int, default=1_000_000, help="inputs of the second table, half of them ID")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    inputs = Inputs(arguments.n)
    agree = True
    print(f"{SCORES} scores, N = {arguments.n}, {arguments.threads} thread(s); ms, the median\n")
    print("| metrics | TorchUncertainty | ours | ratio | metrics there, here | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, (ours, theirs) in PARTS.items():
        mine, other = ours(inputs), theirs(inputs)  # warms up both
        difference = max(float(np.abs(mine[metric] - other[metric]).max()) for metric in other)
        agree = agree and difference <= TOLERANCE
        # In turns, so that a machine that slows down slows both.
        slow, fast = [], []
        for _ in range(arguments.repeats):
            slow.append(seconds(lambda theirs=theirs: theirs(inputs)))
            fast.append(seconds(lambda ours=ours: ours(inputs)))
        ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
        print(
            f"| {name} | {1e3 * statistics.median(slow):.1f} | {1e3 * statistics.median(fast):.1f} | {ratio:.1f}"
            f" | {len(other)}, {len(mine)} | {difference:.0e} |"
        )
    kept = one_large_score(arguments.large, arguments.repeats)
    return 0 if agree and kept else 1


if __name__ == "__main__":
    sys.exit(main())
