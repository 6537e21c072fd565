"""Score finished runs: ``python evaluate.py --checkpoint-dir runs --output-folder out [--eval-classification]``."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from uncertainty_est.cli import log_to_console, one_sentence_errors
from uncertainty_est.request import Request

SOURCES = Path(__file__).resolve().parent / "configs" / "source"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description="Score every run below a folder and write tables and figures.")
    p.add_argument("--checkpoint-dir", type=Path, help="folder below which every finished run is scored")
    p.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="F",
        help="one run: its folder or its checkpoint.pt (repeatable)",
    )
    p.add_argument("--output-folder", type=Path, required=True, help="where tables and figures go")
    p.add_argument("--name", default="out", help="goes into the file names: ood-<name>.csv (default: out)")
    p.add_argument("--eval-classification", action="store_true", help="also write clf-<name>.csv")
    p.add_argument(
        "--eval-ood-calibration",
        action="store_true",
        help="add rows for how far predictions on OOD data are from uniform",
    )
    p.add_argument(
        "--temperature-scaling",
        action="store_true",
        help="add rows (t_…) of softmax classifiers scaled by a temperature that their own validation split gives",
    )
    p.add_argument(
        "--scores",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="S,…",
        help="add rows of post-hoc scores of classifiers, without training: msp, energy, knn:k=10, ash:percentile=80:"
        "variant=b, …, or all; the README lists them",
    )
    p.add_argument(
        "--eval-scod",
        action="store_true",
        help="add rows of selective classification in which every accepted OOD input is an error",
    )
    p.add_argument(
        "--complexity", action="store_true", help="write complexity-<name>.csv: parameters, FLOPs of one input"
    )
    p.add_argument(
        "--ensemble",
        action="store_true",
        help="add rows of ensembles of the runs with classes that differ only in seed, from the same passes",
    )
    p.add_argument(
        "--ddu-json",
        action="store_true",
        help="also write ddu-<name>/res_<network>_<seed>_<type>_<ID set>_<OOD set>.json, as DDU's own evaluation does",
    )
    p.add_argument("--shards", type=positive, metavar="K", help="cut the runs into K parts and score one of them")
    p.add_argument("--shard", type=int, metavar="I", help="which part, 0 to K - 1; the tables of all are put together")
    p.add_argument("--max-eval", type=positive, metavar="N", help="at most N batches of every data set")
    p.add_argument(
        "--config-entries",
        action="append",
        default=[],
        metavar="some.key",
        help="value of the run's config.yaml as a further column (repeatable)",
    )
    p.add_argument("--dataset", metavar="D", help="score this data set as in-distribution, not the run's own")
    p.add_argument(
        "--ood-dataset",
        "--ood_dataset",
        action="append",
        default=[],
        metavar="D",
        help="score this OOD set, not the run's own list (repeatable)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    p.add_argument("--batch-size", type=positive, help="inputs per batch (default: the run's eval_batch_size)")
    p.add_argument("--no-plots", action="store_true", help="draw no figures")
    add_certificates(p.add_argument_group("certificates", "of methods that bound their own confidence: CCU"))
    add_attack(p.add_argument_group("attack", "on the class probabilities of every run, in balls around noise"))
    return p


def add_certificates(group: argparse._ArgumentGroup) -> None:
    """Options of ``cert-<name>.csv``."""
    group.add_argument("--certify", action="store_true", help="write cert-<name>.csv: bounds and certified radii")
    group.add_argument(
        "--certify-points",
        type=positive,
        default=200,
        metavar="N",
        help="inputs of uniform noise and of every OOD set (default: 200)",
    )
    group.add_argument(
        "--certify-radius",
        type=distance,
        action="append",
        default=[],
        metavar="R",
        help="tell the bounds at this radius, in the method's metric (repeatable; default: 0 and 1)",
    )


def add_attack(group: argparse._ArgumentGroup) -> None:
    """Options of ``attack-<name>.csv``."""
    group.add_argument(
        "--attack", action="store_true", help="write attack-<name>.csv: the most confident inputs near noise"
    )
    balls = group.add_mutually_exclusive_group()
    balls.add_argument(
        "--attack-balls",
        type=Path,
        metavar="RUN",
        help="CCU run whose certified balls are attacked (default: the first one evaluated on the same data)",
    )
    balls.add_argument(
        "--attack-radius", type=distance, metavar="R", help="attack Euclidean balls in the network's input space"
    )
    group.add_argument("--attack-seeds", metavar="D", help="OOD set of the balls' centers (default: uniform noise)")
    for name, default, what in (("points", 200, "balls"), ("steps", 500, "ascent steps"), ("restarts", 50, "restarts")):
        group.add_argument(
            f"--attack-{name}", type=positive, default=default, metavar="N", help=f"{what} (default: {default})"
        )


def distance(text: str) -> float:
    """A number that is not negative."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return number


def positive(text: str) -> int:
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> int:
    """Evaluate; returns the exit code: 0, or 1 where anything could not be scored."""
    arguments = parser().parse_args()
    log_to_console()
    request = Request(**vars(arguments), source_dir=SOURCES)
    logging.getLogger("uncertainty_est").info("runs found: %d", len(request.folders))
    # Here and not above: `--help`, a mistyped option and a wrong path should not wait for torch.
    from uncertainty_est.evaluate import evaluate, summary

    report = evaluate(request)
    print(summary(report))
    return 1 if report.failed else 0


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
