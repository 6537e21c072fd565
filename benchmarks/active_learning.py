"""Active learning on MNIST with a small network: a figure, and a table of accuracies.

    python benchmarks/active_learning.py [--seeds 3] [--finished] --output docs/active_learning.md

The figure goes into ``images/active_learning.png`` beside the output. Runs go on where they were interrupted; those
that are finished below ``--runs`` are not trained again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from protocol import ROOT, write

from uncertainty_est.active_learning.curves import draw, read_curves, summary
from uncertainty_est.active_learning.loop import learn_all
from uncertainty_est.cli import log_to_console

ITEMS = 10_000  # of the training split, the pool
EPOCHS, EPOCH_ITEMS = 10, 1280
MAX_LABELS = 120
COMMON = [
    "dataset=mnist",
    "network=lenet",
    "trainer=cpu",
    f"+fixed.sources.mnist.max_items={ITEMS}",
    f"fixed.trainer_config.max_epochs={EPOCHS}",
    "active_learning.labels_per_step=20",
    f"active_learning.max_labels={MAX_LABELS}",
    f"active_learning.epoch_items={EPOCH_ITEMS}",
]
MEMBERS = 3
# Random, entropy and density start from the same networks.
LINES = [
    ["acquisition=random", "model=img_ddu"],
    ["acquisition=entropy", "model=img_ddu"],
    ["acquisition=gmm_density", "model=img_ddu"],
    [
        "acquisition=mutual_information",
        "model=img_deep_ensemble",
        f"fixed.model_config.num_members={MEMBERS}",
    ],
]


def run_all(seeds: int, data_root: Path, runs: Path) -> pd.DataFrame:
    """The rows of all runs, one seed after another."""
    torch.set_num_threads(1)
    log_to_console(logging.WARNING)
    paths = []
    for seed in range(1, seeds + 1):
        for line in LINES:
            overrides = [
                *COMMON,
                *line,
                f"fixed.seed={seed}",
                f"fixed.data_root={data_root}",
                f"fixed.output_folder={runs}",
            ]
            with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
                config = compose("active_learning", overrides=overrides)
            paths += learn_all(config, ROOT / "configs" / "source")
            sys.stderr.write(f"{paths[-1].parent.name}: done\n")
    return read_curves(paths)


def finished(runs: Path) -> pd.DataFrame:
    """The rows of the runs that are complete."""
    rows = read_curves([runs])
    return rows.groupby(["Acquisition", "Model", "Seed"], sort=False).filter(
        lambda run: run["Labels"].max() == MAX_LABELS
    )


def cell(mean: float, error: float) -> str:
    return f"{mean:.1f}" + (f" ± {error:.1f}" if error == error else "")  # the error of one seed is NaN


def table_of(rows: pd.DataFrame) -> list[str]:
    """Mean ± standard error of the accuracy at every number of labels, in Markdown."""
    table = summary(rows, "Accuracy")
    labels = sorted(table["Labels"].unique())
    lines = [
        "| acquisition | model | seeds | " + " | ".join(str(n) for n in labels) + " |",
        "|---|---|---|" + "---|" * len(labels),
    ]
    for (acquisition, model), line in table.groupby(["Acquisition", "Model"], sort=False):
        cells = [cell(mean, error) for mean, error in zip(line["Mean"], line["Error"], strict=True)]
        lines.append(f"| `{acquisition}` | `{model}` | {line['Seeds'].min()} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DATA_ROOT", "../data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/active_learning"))
    parser.add_argument("--finished", action="store_true", help="tell of complete runs only, train none")
    parser.add_argument("--output", type=Path, help="Markdown file (default: standard output)")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    rows = finished(runs) if arguments.finished else run_all(arguments.seeds, arguments.data_root.resolve(), runs)
    commands = [
        f"python -m uncertainty_est.active_learning {' '.join(line)} {' '.join(COMMON)} active_learning.seeds=[1,2,3]"
        for line in LINES
    ]
    text = [
        "# Active learning on MNIST",
        "",
        "Written by `python benchmarks/active_learning.py --output docs/active_learning.md`. Accuracy on the 10,000"
        " test images, percent, mean ± standard error over seeds, by the number of labels.",
        "",
        "![accuracy over labels](images/active_learning.png)",
        "",
        *table_of(rows),
        "",
        f"A LeNet (`network=lenet`; of the ensemble {MEMBERS} of them), a pool of {ITEMS:,} training images; from 20"
        f" labels, 2 of each class, to {MAX_LABELS} in steps of 20; every step trains from scratch for {EPOCHS} epochs"
        f" of {EPOCH_ITEMS} images in batches of 64, last weights. All runs of one seed start with the same labels."
        " DDU's own protocol (arXiv:2102.11582) acquires 5 at a time, up to 300, from the whole training split, with a"
        " ResNet-18, 20 epochs of 5056 images and the weights that are best on the validation split; its figures give"
        " no numbers to compare with. A LeNet has no residual connections, which the density of features relies on.",
        "",
        "```bash",
        *commands,
        "```",
    ]
    write("\n".join(text) + "\n", arguments.output)
    if arguments.output:
        images = arguments.output.parent / "images"
        images.mkdir(exist_ok=True)
        draw(rows, images / "active_learning.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
