"""CCU and the methods that it is measured by, on MNIST: confidence on OOD sets, under attack, and what is certified.

    python benchmarks/ccu.py --data-root ../data [--seeds 1] [--jobs 2] --output docs/ccu.md

LeNet; outliers to train on are grey CIFAR-10. Finished runs below ``--runs`` are not trained again; runs are scored and
attacked once the last is trained.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
from protocol import ROOT, Row, Table, arguments_of, results_of_tables, write

from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.points import UNIFORM
from uncertainty_est.request import Request

EPOCHS, ACET_EPOCHS, ACET_STEPS = 10, 3, 10
POINTS, STEPS, RESTARTS = 100, 200, 3
OOD = ["fashionmnist", "emnist_letters", "kmnist", "uniform_noise", "smoothed_noise"]
OUTLIERS = ["fixed.ood_dataset=cifar10"]
AFTER_TRAINING = ["fixed.trainer_config.max_epochs=0", "fixed.val_ood_datasets=[cifar10]"]

ROWS = [
    Row("Plain", ["model=img_ce_baseline"]),
    Row("CEDA", ["model=img_ceda", *OUTLIERS]),
    Row(
        "ACET",
        [
            "model=img_acet",
            *OUTLIERS,
            f"fixed.trainer_config.max_epochs={ACET_EPOCHS}",
            f"fixed.model_config.steps={ACET_STEPS}",
            "fixed.model_config.warmup_epochs=1",
            # As in the published comparison; the largest log-probability has no gradient where it is near 0.
            "fixed.model_config.kind=uniform",
        ],
    ),
    Row("OE (fine-tuned)", ["model=img_energy_finetuning_oe", *OUTLIERS], starts_from=0),
    Row("CCU", ["model=img_ccu", *OUTLIERS]),
    Row(
        "ODIN",
        ["model=img_odin", *AFTER_TRAINING, "fixed.model_config.temperature=null", "fixed.model_config.epsilon=null"],
        starts_from=0,
    ),
    Row("Mahalanobis", ["model=img_mahalanobis", *AFTER_TRAINING, "fixed.model_config.epsilon=null"], starts_from=0),
    Row("EDL", ["model=img_edl"]),
    Row("MC dropout", ["model=img_mc_dropout"]),
    Row("Deep ensemble", ["model=img_deep_ensemble"]),
]
TABLES = [
    Table(
        "mnist",
        "MNIST",
        "mnist",
        "cifar10",
        [],
        ROWS,
        needs="MNIST/raw",
        common=[
            "network=lenet",
            f"fixed.trainer_config.max_epochs={EPOCHS}",
            f"fixed.test_ood_datasets=[{','.join(OOD)}]",
            "fixed.transform.rotation=0.0",
            "fixed.transform.mean=0.0",  # distances and boxes in pixels of [0, 1], as published
            "fixed.transform.std=1.0",
        ],
    )
]
HEAD = f"""# CCU beside other methods on MNIST

LeNet, {EPOCHS} epochs on 54,000 images (ACET: {ACET_EPOCHS} epochs, {ACET_STEPS} steps of ascent, outliers
towards uniform predictions).
Outliers are 10,000 grey images of CIFAR-10, on which ODIN and Mahalanobis distances choose their temperature and
perturbation. In percent, of each method's headline score: mean confidence (MMC), AUROC and FPR95 on every OOD set.
"""
ATTACK = f"""## Attack

{POINTS} images of uniform noise; {STEPS} steps of gradient ascent from {RESTARTS} starts in each of the
balls in which CCU certifies at most 11 % confidence. (Published: 200 images, 500 steps, 50 starts.) Success: attacked
noise as confident as the median test image. AUROC of the test set against attacked noise.
"""
CERTIFIED = """## Certificates

Share of points with a certified ball, median radius in units of the metric, and the AUROC of the test set against the
upper bounds in the balls, which no choice of points in them can push below.
"""
SHOWN = ("MMC", "AUROC", "FPR95")


def lines_of(table: pd.DataFrame, labels: dict[str, str], columns: list[tuple[str, str, str]]) -> list[str]:
    """Markdown of means over seeds, one line a method.

    Args:
        table: tidy, with columns ``Run``, ``Metric`` and ``Value``.
        labels: run to the name of its method, in order.
        columns: title, a query that selects rows, and the metric.
    """
    header = ["method", *(title for title, _, _ in columns)]
    lines = [header, ["---"] * len(header)]
    for label in dict.fromkeys(labels.values()):
        of_label = table[table["Run"].map(labels) == label]
        cells = []
        for _, query, metric in columns:
            found = of_label.query(query)
            values = found[found["Metric"] == metric]["Value"]
            cells.append(f"{values.mean():.1f}" if len(values) else "–")
        if set(cells) != {"–"}:
            lines.append([label, *cells])
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def main() -> int:
    arguments = arguments_of(str(__doc__), TABLES, seeds=1, runs="runs/ccu")
    rows = results_of_tables(TABLES, arguments)["mnist"]
    if rows is None:
        sys.stderr.write(f"{TABLES[0].needs} is not in the data folder\n")
        return 1
    runs = {
        str(numbers["run_dir"]): row.label for row, of_seeds in zip(ROWS, rows, strict=True) for numbers in of_seeds
    }
    with tempfile.TemporaryDirectory() as out:
        report = evaluate(
            Request(
                output_folder=Path(out),
                source_dir=ROOT / "configs" / "source",
                checkpoint=[Path(folder) for folder in runs],
                eval_classification=True,
                certify=True,
                certify_points=POINTS,
                attack=True,
                attack_points=POINTS,
                attack_steps=STEPS,
                attack_restarts=RESTARTS,
                no_plots=True,
            )
        )
    labels = {Path(folder).name: label for folder, label in runs.items()}
    everywhere = "index == index"
    metrics = [
        (f"{name} {m}", f"`OOD dataset` == '{name}' and (Headline or Metric == 'MMC')", m)
        for name in OOD
        for m in SHOWN
    ]
    noise, attacked = (f"`OOD dataset` == '{UNIFORM}{end}'" for end in ("", ", attacked"))
    attacks = [
        ("test error", everywhere, "Test error"),
        ("MMC before", noise, "MMC"),
        ("MMC attacked", attacked, "MMC"),
        ("median attacked", attacked, "Median confidence"),
        ("success", attacked, "Success rate"),
        ("AUROC attacked", attacked, "AUROC"),
        ("excess over the bound", attacked, "Largest excess over the bound"),
    ]
    certified = [
        (f"{name} {metric.lower()}", f"`OOD dataset` == '{name}' and Radius.isna()", metric)
        for name in ("uniform_noise", *(name for name in OOD if name != "uniform_noise"))
        for metric in ("Certified fraction", "Certified radius (median)", "Guaranteed AUROC")
    ]
    texts = [
        HEAD,
        *lines_of(report.clf, labels, [("accuracy", everywhere, "Accuracy"), ("ECE", everywhere, "ECE")]),
        *lines_of(report.ood, labels, metrics),
        ATTACK,
        *lines_of(report.extra("attack"), labels, attacks),
        CERTIFIED,
        *lines_of(report.extra("cert"), labels, certified),
    ]
    texts += [f"Not scored: {row}" for row in report.failed]
    write("\n".join(texts), arguments.output)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
