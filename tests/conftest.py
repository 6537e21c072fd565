"""What several test files share: composing configurations, small data, and each method trained once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import settings
from sklearn.datasets import load_digits

from uncertainty_est import checkpoints
from uncertainty_est.data.sources.synthetic import Gaussian2D
from uncertainty_est.launch import points_of
from uncertainty_est.run import run

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
OWN_SOURCES = sorted(p.stem for p in (CONFIGS / "source").glob("*.yaml") if "${fixed.path}" in p.read_text())


def dataset_names(own: bool) -> list[str]:
    """Configurations of data sets: those of one's own data, which need a path, or the others."""
    files = sorted((CONFIGS / "dataset").glob("*.yaml"))
    return [p.stem for p in files if (yaml.safe_load(p.read_text())["fixed"]["dataset"] in OWN_SOURCES) is own]


DATASETS = dataset_names(own=False)

# How long an example takes says more of what else the machine is doing than of the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

torch.set_num_threads(1)  # small tensors: threads cost more than they give, and rounding stays the same everywhere


def compose_points(*overrides: str) -> list[dict[str, Any]]:
    """The resolved, validated points that a command line asks for."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    return points_of(config, CONFIGS / "source")


def real_data() -> Path:
    """Folder of the developers' real data sets; skips the test where it is absent."""
    folder = Path(os.environ.get("UNCERTAINTY_EST_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the developers' real data are not here (set UNCERTAINTY_EST_TEST_DATA)")
    return folder


def quick_overrides(model: str, data_root: Path, output_folder: Path, trainer: str = "cpu") -> list[str]:
    """A composition of `model` that trains in seconds, with the ``between`` set of `small_data` as its OOD set."""
    if model.startswith("fc_"):
        kind = ["dataset=gaussian2d", "fixed.trainer_config.max_epochs=25"]
    else:
        kind = ["dataset=digits", "fixed.trainer_config.max_epochs=15"]
    return [
        *kind,
        "fixed.ood_dataset=uniform_noise",  # read by methods that train on outliers only
        f"model={model}",
        f"trainer={trainer}",
        "logger=csv",
        f"fixed.data_root={data_root}",
        f"fixed.output_folder={output_folder}",
        "fixed.test_ood_datasets=[between]",
        "fixed.trainer_config.enable_progress_bar=false",
    ]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Data root by kind (``fc`` or ``img``) with ``between.npz``: means of two inputs of different classes.

    Whatever a score rests on, such inputs are less in-distribution than data: they are ambiguous, and lie in the gaps.
    """
    folders: dict[str, Path] = {}

    def root(kind: str) -> Path:
        if kind not in folders:
            rng = np.random.default_rng(0)
            folders[kind] = tmp_path_factory.mktemp(f"data-{kind}")
            if kind == "fc":
                split = Gaussian2D(shape=[2], test_fraction=0.1).split("train")
                x, y = split.x.numpy().astype(np.float64), split.y.numpy()
            else:
                digits = load_digits()
                x, y = digits.images * 255 / 16, digits.target
            first, second = rng.integers(len(x), size=(2, 2000))
            pair = y[first] != y[second]
            mixed = (x[first[pair]] + x[second[pair]]) / 2
            mixed = mixed.astype(np.float32 if kind == "fc" else np.uint8)
            labels = np.zeros(len(mixed), np.int64)
            np.savez(folders[kind] / "between.npz", x_train=mixed, y_train=labels, x_test=mixed, y_test=labels)
        return folders[kind]

    return root


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (``-n 2 --dist loadgroup``), tests of one trained model share a process.

    So do those of one file, for the sake of its fixtures.
    """
    for item in items:
        assert isinstance(item, pytest.Function)
        model = item.callspec.params.get("model") if hasattr(item, "callspec") else None
        if model is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
        elif "trained" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(str(model)))


@dataclass
class Trained:
    """A method that was trained for a few epochs, and loaded again."""

    model: str
    fixed: dict[str, Any]
    results: dict[str, Any]
    run: checkpoints.Run


@pytest.fixture(scope="session")
def trained(small_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains a model configuration the first time it is asked for, and hands out the same run afterwards."""
    runs: dict[str, Trained] = {}

    def get(model: str) -> Trained:
        if model not in runs:
            out = tmp_path_factory.mktemp(model)
            (fixed,) = compose_points(*quick_overrides(model, small_data(model.split("_")[0]), out))
            results = run(**fixed)
            runs[model] = Trained(model, fixed, results, checkpoints.load(Path(results["run_dir"])))
        return runs[model]

    return get
