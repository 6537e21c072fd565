"""Help, the composed configuration and errors in it do not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

RUN = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code or 0
else:
    code = 0
heavy = sorted({{"torch", "pytorch_lightning", "pandas", "matplotlib", "sklearn"}} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("train_local.py --help", 0, "Configuration groups"),
        ("train_local.py dataset=digits model=img_ddu --cfg job", 0, "models.ddu.DDU"),
        ("train_local.py dataset=digits model=img_duu", 1, "did you mean 'img_ddu'?"),
        ("train_local.py dataset=digits model=img_ddu +fixed.model_config.nope=1", 1, "DDU takes no such argument"),
        ("train_local.py dataset=digits model=img_ddu fixed.test_ood_datasets=[digitz]", 1, "did you mean 'digits'?"),
        ("train_local.py dataset=digits model=img_ddu fixed.test_ood_datasets=[digits]", 1, "in-distribution set"),
        ("train_local.py dataset=digits model=img_ddu fixed.on_divergence=x", 1, "stop, restart, keep"),
        ("train_local.py dataset=digits model=img_ddu fixed.init_from=nowhere", 1, "no finished run"),
        (
            "train_local.py dataset=digits model=img_ddu +grid.no.type=choice +grid.no.options=[1]",
            1,
            "fixed.no to sweep",
        ),
        ("evaluate.py --help", 0, "--checkpoint-dir"),
        ("evaluate.py --checkpoint-dir nowhere --output-folder out", 1, "there is no folder 'nowhere'"),
    ],
)
def test_torch_is_not_imported(argv: str, code: int, message: str) -> None:
    command = [sys.executable, "-c", RUN.format(argv=argv.split())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
