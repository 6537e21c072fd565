"""Make ambiguous digits from MNIST: ``python -m uncertainty_est.data.generate_ambiguous --data-root ../data``.

They stand in for the published Ambiguous-MNIST where that cannot be fetched, in the same files: ``ambiguous_mnist`` and
``dirty_mnist`` read them like it. The figures of the published set are not theirs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from uncertainty_est.cli import log_to_console, one_sentence_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m uncertainty_est.data.generate_ambiguous",
        description="Write ambiguous digits with soft labels to <data-root>/AmbiguousMNIST, made from MNIST.",
        argument_default=argparse.SUPPRESS,  # defaults are those of uncertainty_est.generate_ambiguous.Settings
    )
    p.add_argument(
        "--data-root",
        type=Path,
        default=Path(os.environ.get("DATA_ROOT", "../data")),
        metavar="DIR",
        help="folder of the data sets (default: $DATA_ROOT, or ../data)",
    )
    for name, kind, what in (
        ("n", int, "images of each part (default: 6000)"),
        ("seed", int, "of everything (default: 1)"),
        ("labels-per-image", int, "labels drawn for each image (default: 10)"),
        ("latent-dim", int, "of the variational autoencoder (default: 16)"),
        ("vae-epochs", int, "its training (default: 6)"),
        ("members", int, "classifiers that give soft labels (default: 3)"),
        ("member-epochs", int, "their training (default: 1)"),
        ("blend", float, "most that one of two digits weighs (default: 0.7)"),
        ("min-entropy", float, "of a soft label, in nats (default: 0.4)"),
        ("max-entropy", float, "of a soft label, in nats (default: 1.4)"),
        ("max-disagreement", float, "mutual information of label and classifier, in nats (default: 0.2)"),
    ):
        p.add_argument(f"--{name}", type=kind, metavar="X", help=what)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate; returns the exit code."""
    options = vars(parser().parse_args(arguments))
    # Here and not above: `--help` and a mistyped option should not wait for torch.
    from uncertainty_est.generate_ambiguous import Settings, generate

    log_to_console()
    generate(options.pop("data_root"), Settings(**options))
    return 0


if __name__ == "__main__":
    with one_sentence_errors():
        raise SystemExit(main())
