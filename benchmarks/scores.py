"""Leave-out ensembles, DEUP and every post-hoc score of a classifier, on digits, MNIST and CIFAR-10: tables over seeds.

    python benchmarks/scores.py --data-root ../data [--seeds 3] [--jobs 2] --output docs/scores.md

Small networks and few epochs, for a CPU. Finished runs below ``--runs`` are not trained again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
from protocol import ROOT, Row, Table, arguments_of, results_of_tables, with_error, write

from uncertainty_est.evaluate import evaluate
from uncertainty_est.request import Request


def table_of(dataset: str, title: str, ood: list[str], needs: str | None, epochs: int, *more: str) -> Table:
    """A table of three methods, whose runs are scored on the OOD sets given."""
    rows = [
        Row("cross-entropy", ["model=img_ce_baseline"]),
        Row("leave-out ensemble", ["model=img_leave_out_ensemble"]),
        Row("DEUP", ["model=img_deup", f"fixed.model_config.fold_epochs={min(epochs, 8)}"]),
    ]
    common = [f"fixed.trainer_config.max_epochs={epochs}", f"fixed.test_ood_datasets=[{','.join(ood)}]", *more]
    return Table(dataset, title, dataset, ood[0], [], rows, needs, common)


TABLES = [
    table_of("digits", "Digits", ["photo_patches", "uniform_noise", "gaussian_noise", "constant"], None, 20),
    table_of(
        "mnist",
        "MNIST, 2 epochs of LeNet",
        ["fashionmnist", "kmnist", "emnist_letters", "uniform_noise"],
        "MNIST/raw",
        2,
        "network=lenet",
    ),
    table_of(
        "cifar10",
        "CIFAR-10, 9,000 images, 8 epochs of LeNet",
        ["tiny_imagenet32", "uniform_noise", "gaussian_noise", "constant"],
        "cifar10.npz",
        8,
        "network=lenet",
    ),
]
HEAD = """# Post-hoc scores beside leave-out ensembles and DEUP

AUROC in percent, mean ± standard error over {seeds} seeds, each with another split. `evaluate.py --scores all` read
every score of a classifier from one pass (those by pytorch-ood where it is installed); leave-out ensembles, which are
none, have their own.
"""


def lines_of(ood: pd.DataFrame, labels: dict[str, str], columns: list[str]) -> list[str]:
    """Markdown, one line for each score of each method, the highest mean over all sets first.

    Of DEUP only the score of its own: what else is read of its classifier is the cross-entropy's.
    """
    auroc = ood[(ood["Metric"] == "AUROC") & ood["OOD dataset"].isin(columns)]
    auroc = auroc.assign(Method=auroc["Run"].map(labels))
    auroc = auroc[(auroc["Method"] != "DEUP") | (auroc["Score"] == "deup")]
    wide = auroc.pivot_table(index=["Method", "Score", "Run"], columns="OOD dataset", values="Value")[columns]
    order = wide.mean(axis=1).groupby(["Method", "Score"]).mean().sort_values(ascending=False).index
    lines = [["method", "score", *columns], ["---"] * (2 + len(columns))]
    for method, score in order:
        cells = [with_error(wide.loc[(method, score), column].tolist()) for column in columns]
        lines.append([method, score.replace("|", r"\|"), *cells])
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def main() -> int:
    arguments = arguments_of(str(__doc__), TABLES, seeds=3, runs="runs/scores")
    texts = [HEAD.format(seeds=arguments.seeds)]
    failed: list[dict[str, str]] = []
    for name, rows in results_of_tables(TABLES, arguments).items():
        table = next(table for table in TABLES if table.name == name)
        texts.append(f"## {table.title}\n")
        if rows is None:
            texts.append(f"{table.needs} was not in the data folder.\n")
            continue
        runs = {Path(str(n["run_dir"])): row.label for row, seeds in zip(table.rows, rows, strict=True) for n in seeds}
        # Named by their path below the common folder: runs of two methods may have one folder name.
        top = arguments.runs.resolve() / name
        with tempfile.TemporaryDirectory() as out:
            report = evaluate(
                Request(
                    output_folder=Path(out),
                    source_dir=ROOT / "configs" / "source",
                    checkpoint_dir=top,
                    eval_classification=True,
                    scores=["all"],
                    no_plots=True,
                )
            )
        labels = {folder.relative_to(top).as_posix(): label for folder, label in runs.items()}
        # A score that could not be fitted is one line of the report: leave-out ensembles have no logits of one network.
        failed += [row for row in report.failed if "--scores" not in row["Error"]]
        columns = list(report.ood.loc[report.ood["Group"] != "mean", "OOD dataset"].unique())
        accuracy = report.clf[report.clf["Metric"] == "Accuracy"].set_index("Run")["Value"].groupby(labels)
        texts += [f"Accuracy: {', '.join(f'{label} {with_error(v.tolist())}' for label, v in accuracy)} %.\n"]
        texts += lines_of(report.ood, labels, columns)
    texts += [f"Not scored: {row}" for row in failed]
    write("\n".join(texts), arguments.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
