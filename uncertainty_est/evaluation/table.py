"""A table for a paper from finished evaluations: ``python -m uncertainty_est.evaluation.table out/ood-out.csv …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from uncertainty_est.cli import one_sentence_errors
from uncertainty_est.errors import DataError, first_line
from uncertainty_est.evaluation.paper_table import TESTS, PaperTable, TableOptions, paper_table
from uncertainty_est.files import make_folder, write_text

_COLUMNS = ("Model Type", "ID dataset", "Score", "Metric", "Value", "Config", "Seed", "Run")
_WRITERS: dict[str, Callable[[PaperTable, int], str]] = {
    ".md": PaperTable.to_markdown,
    ".tex": PaperTable.to_latex,
    ".csv": lambda table, digits: table.to_csv(),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m uncertainty_est.evaluation.table",
        description="Methods by OOD sets, mean ± standard error over seeds, from tables that evaluate.py wrote.",
    )
    p.add_argument(
        "tables", nargs="+", type=Path, metavar="CSV", help="ood-<name>.csv, and clf-<name>.csv for ID metrics"
    )
    p.add_argument("--metrics", type=names, default=["AUROC"], metavar="M,…", help="columns (default: AUROC)")
    p.add_argument(
        "--scores", type=names, default=[], metavar="S,…", help="rows (default: each method's headline score)"
    )
    p.add_argument(
        "--by", type=names, default=[], metavar="C,…", help="columns of config entries that tell methods apart"
    )
    p.add_argument("--id-dataset", metavar="D", help="in-distribution set, where the tables have several")
    p.add_argument(
        "--test", choices=list(TESTS), default="t", help="paired test over seeds against the best (default: t)"
    )
    p.add_argument("--digits", type=int, default=2, metavar="N", help="decimals (default: 2)")
    p.add_argument(
        "--output",
        type=output,
        action="append",
        default=[],
        metavar="F",
        help="also write to this .md, .tex (booktabs) or .csv file (repeatable)",
    )
    return p


def names(text: str) -> list[str]:
    """Names between commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def output(text: str) -> Path:
    """A path with an ending that says how to write."""
    path = Path(text)
    if path.suffix not in _WRITERS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(_WRITERS)}, got {text}")
    return path


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows of all files, one beneath the other.

    Raises:
        DataError: a file that is missing or is no table of ``evaluate.py``'s.
    """
    return pd.concat([_read(path) for path in paths], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"Seed": str, "Score": str, "Group": str})
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file; evaluate.py writes ood-<name>.csv and clf-<name>.csv"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: this is no table that evaluate.py wrote ({first_line(error)})") from error
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise DataError(
            f"{path}: there is no column '{missing[0]}'; give an ood-<name>.csv or clf-<name>.csv of evaluate.py"
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table in Markdown, and write it."""
    options = parser().parse_args(arguments)
    shown = TableOptions(options.metrics, options.scores, options.by, options.id_dataset, options.test)
    table = paper_table(read_tables(options.tables), shown)
    sys.stdout.write(table.to_markdown(options.digits))
    for path in options.output:
        make_folder(path.parent, "--output")
        write_text(path, _WRITERS[path.suffix](table, options.digits))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
