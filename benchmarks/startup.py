"""What a command costs before anything is trained, against importing torch.

    python benchmarks/startup.py [--repeats 5]

Every command is a process of its own; they take turns with the imports that they are compared with.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from ratios import ROOT, Ratio, in_turns, main, ratio_of

TORCH, LIGHTNING = "import torch", "import torch, pytorch_lightning"
BEFORE = {
    "train_local.py --help": "train_local.py --help",
    "train_local.py --cfg job": "train_local.py dataset=cifar10 model=img_ddu --cfg job",
    "a model that does not exist": "train_local.py model=img_duu",
    "a key that does not exist": "train_local.py dataset=cifar10 model=img_ddu +fixed.model_config.nope=1",
    "an OOD set that does not exist": "train_local.py dataset=cifar10 fixed.test_ood_datasets=[svhm]",
    "a key of a grid that does not exist": "train_local.py grid=seed +grid.nope.type=choice +grid.nope.options=[1]",
    "evaluate.py --help": "evaluate.py --help",
    "evaluate.py of a folder that does not exist": "evaluate.py --checkpoint-dir nowhere --output-folder nowhere",
}
# The process ends where the first step would begin.
FIRST_STEP = """
import os, runpy, sys
from uncertainty_est.models.base import Method
Method.training_step = lambda self, *_: os._exit(0)
sys.argv = ["train_local.py", "dataset=breast_cancer", "model=fc_ce_baseline", "trainer=cpu", "fixed.output_folder={}"]
runpy.run_path("train_local.py", run_name="__main__")
"""


def process(*arguments: str) -> Callable[[], object]:
    """A call that starts Python with these arguments and waits for its end."""
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=False)


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        calls = {what: process(*command.split()) for what, command in BEFORE.items()}
        calls |= {imports: process("-c", imports) for imports in (TORCH, LIGHTNING)}
        calls["first"] = process("-c", FIRST_STEP.format(folder))
        in_turns(calls, 1)  # byte code and file caches
        times = in_turns(calls, arguments.repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    for what in BEFORE:
        rival = f"`{TORCH}`: {median[TORCH]:.2f} s"
        rows.append(Ratio(what, f"{median[what]:.2f} s", rival, ratio_of(times, what, TORCH), 0.5))
    rival = f"`{LIGHTNING}`: {median[LIGHTNING]:.2f} s"
    what = "from the command to the first training step"
    rows.append(Ratio(what, f"{median['first']:.2f} s", rival, ratio_of(times, "first", LIGHTNING), 1.3))
    return rows


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("repeats", 5)))
