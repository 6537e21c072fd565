"""Curves of many runs in one figure: ``python -m uncertainty_est.active_learning.curves runs --output curves.png``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.errors import ConfigError, DataError

CURVE_FILE = "curve.csv"
COLUMNS = (
    "Seed",
    "Step",
    "Labels",
    "Acquisition",
    "Model",
    "Dataset",
    "Accuracy",
    "NLL",
    "Ambiguous share",
    "Minutes",
)
# What a figure can show of a row, in percent.
SHOWN = {"Accuracy": "test accuracy, %", "Ambiguous share": "ambiguous among the acquired, %"}
_OF_A_LINE = ["Dataset", "Acquisition", "Model"]


def read_curves(paths: Iterable[Path]) -> pd.DataFrame:
    """The rows of several tables.

    Args:
        paths: tables, or folders with any number of them at or below.

    Raises:
        ConfigError: nothing is there.
        DataError: a file is no table of active learning.
    """
    tables = []
    for path in paths:
        files = sorted(path.rglob(CURVE_FILE)) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise ConfigError(f"'{path}': there is no {CURVE_FILE}; give what uncertainty_est.active_learning wrote")
        for file in files:
            try:
                table = pd.read_csv(file)
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read as a table; give a {CURVE_FILE}") from error
            missing = [name for name in COLUMNS if name not in table]
            if missing:
                raise DataError(f"{file} has no column '{missing[0]}'; give a {CURVE_FILE}")
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summary(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and standard error over seeds, one row for each data set, acquisition, model and number of labels.

    Args:
        rows: as :func:`read_curves` gives them.
        column: of which quantity; rows without it are left out.

    Returns:
        Columns ``Dataset, Acquisition, Model, Labels, Mean, Error, Seeds``; the error of one seed is NaN.
    """
    groups = rows.dropna(subset=[column]).groupby([*_OF_A_LINE, "Labels"], sort=False)[column]
    return groups.agg(Mean="mean", Error="sem", Seeds="count").reset_index()


def draw(rows: pd.DataFrame, output: Path) -> list[Path]:
    """Accuracy over labels, one line for each acquisition, model and data set, mean ± standard error over seeds.

    Args:
        rows: as :func:`read_curves` gives them.
        output: a .png or .pdf; where pools were mixed, the share of ambiguous items goes beside it, to
            ``<stem>-ambiguous``.

    Returns:
        The files.
    """
    # Here and not above: `--help` should not wait for matplotlib.
    from uncertainty_est.evaluation.plots import learning_curves, save_figure

    files = []
    datasets = rows["Dataset"].unique()
    for column, label in SHOWN.items():
        table = summary(rows, column)
        if table.empty:
            continue
        curves = {}
        for (dataset, acquisition, model), line in table.groupby(_OF_A_LINE, sort=False):
            name = f"{acquisition} ({model})" + (f", {dataset}" if len(datasets) > 1 else "")
            line = line.sort_values("Labels")
            curves[name] = (line["Labels"], line["Mean"], line["Error"])
        figure = learning_curves(curves, x="labels", y=label, title=", ".join(datasets))
        mark = "" if column == "Accuracy" else "-ambiguous"
        files.append(output.with_name(f"{output.stem}{mark}{output.suffix}"))
        save_figure(figure, files[-1])
    return files


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m uncertainty_est.active_learning.curves",
        description="Draw the curves of several runs of active learning, mean and standard error over seeds.",
    )
    p.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=f"{CURVE_FILE}, or a folder above some")
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .png or .pdf")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.output.suffix not in (".png", ".pdf"):
        raise ConfigError(f"--output: must end in .png or .pdf, got '{options.output}'")
    from uncertainty_est.files import make_folder

    log_to_console()
    make_folder(options.output.parent, "--output")
    draw(read_curves(options.paths), options.output)
    return 0


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
