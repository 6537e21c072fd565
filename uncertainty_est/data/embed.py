"""Export a trained classifier's features as data sets: ``python -m uncertainty_est.data.embed --run RUN``.

For each data set one file ``<name>_embedded.npz`` of float32 tables ``[N, D]``, which is a data set like any other:
train on it with ``dataset=<name>_embedded fixed.data_root=<folder> fixed.data_shape=[D]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from uncertainty_est.cli import log_to_console, one_sentence_errors

SOURCES = Path(__file__).resolve().parents[2] / "configs" / "source"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m uncertainty_est.data.embed",
        description="Write a finished classifier's features of data sets to .npz files, data sets themselves.",
    )
    p.add_argument("--run", type=Path, required=True, help="the run: its folder or its checkpoint.pt")
    p.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what to embed (default: the run's in-distribution set and its test OOD sets)",
    )
    p.add_argument("--output-folder", type=Path, metavar="DIR", help="where the files go (default: <RUN>/embedded)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    p.add_argument("--batch-size", type=int, metavar="N", help="inputs per batch (default: the run's eval_batch_size)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed; returns the exit code: 0, or 1 where a data set was left out."""
    options = parser().parse_args(arguments)
    # Here and not above: `--help` and a mistyped option should not wait for torch.
    from uncertainty_est.embed import Request, embed

    log_to_console()
    return 1 if embed(Request(**vars(options), source_dir=SOURCES)).failed else 0


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
