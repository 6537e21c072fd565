"""The README's commands are right: composed or parsed here, and the demo's run for real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import evaluate as evaluate_script
from tests.conftest import CONFIGS, MODELS, ROOT, compose_points
from tests.processes import Command

README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Words of every command in the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def lines_of(script: str) -> list[list[str]]:
    """Arguments of every call of `script` in the README, the line of placeholders left out."""
    calls = [words[words.index(script) + 1 :] for words in commands() if script in words]
    return [words for words in calls if not any("…" in word for word in words)]


@pytest.mark.parametrize("words", lines_of("train_local.py"), ids=" ".join)
def test_every_training_command_composes(words: list[str], tmp_path: Path) -> None:
    # The runs that init_from names do not exist here; tests/test_run.py starts from real ones.
    overrides = [word for word in words if not word.startswith(("-", "fixed.init_from")) and word != "job"]
    if "--multirun" in words:
        overrides = [word.split(",")[0] for word in overrides]
    assert compose_points(*overrides, f"fixed.output_folder={tmp_path}")


@pytest.mark.parametrize("words", lines_of("evaluate.py"), ids=" ".join)
def test_every_evaluation_command_parses(words: list[str]) -> None:
    assert evaluate_script.parser().parse_args(words).output_folder


def test_every_option_of_evaluate_is_documented_and_exists() -> None:
    known = {option for action in evaluate_script.parser()._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z-]+)", README.split("## Evaluate")[1].split("## Methods")[0]))
    missing = {option for option in known if option.startswith("--")} - named - {"--help", "--ood_dataset"}
    documented_elsewhere = {"--checkpoint-dir", "--output-folder", "--eval-classification"}
    assert missing <= documented_elsewhere
    assert named <= known


def test_the_makefile_runs_the_lines_that_the_readme_shows() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.findall(r"^\t\$\(BIN\)/(python (?:train_local|evaluate)\.py .*)$", makefile, flags=re.MULTILINE)
    assert len(recipe) == 2
    for line in recipe:
        assert f".venv/bin/{line}" in README


def test_the_tables_name_all_models_and_choices() -> None:
    for model in MODELS:
        assert f"`{model}`" in README
    for group in ("trainer", "logger", "grid", "variant", "network", "ood"):
        (row,) = re.findall(rf"^\| `{group}` \|(.*)\|$", README, flags=re.MULTILINE)
        for path in (CONFIGS / group).glob("*.yaml"):
            assert f"`{path.stem}`" in row, path
    for path in [*(CONFIGS / "dataset").glob("*.yaml"), *(CONFIGS / "source").glob("*.yaml")]:
        assert f"`{path.stem}`" in README, path


def test_every_local_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """The two lines of ``make demo``, elsewhere: accuracy and density are what the README promises."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    lines = [line for line in commands() if {"runs/demo", "fixed.output_folder=runs/demo"} & set(line)]
    assert len(lines) == 2
    for line in lines:
        text = [word.replace("runs/demo", str(runs)).replace("out/demo", str(out)) for word in line]
        result = Command(text[1:]).wait()
        assert result.returncode == 0, result.stderr
    clf = pd.read_csv(out / "clf-out.csv").set_index("Metric")["Value"]
    ood = pd.read_csv(out / "ood-out.csv").query("Score == 'gmm_log_density' and Metric == 'AUROC'")
    auroc = ood.set_index("OOD dataset")["Value"]
    assert clf["Accuracy"] >= 98
    assert auroc["photo_patches"] >= 98.5
    assert auroc["uniform_noise"] >= 97.5
