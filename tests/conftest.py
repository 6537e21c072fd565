"""What several test files share: composing configurations, small data, and each method trained once."""

from __future__ import annotations

import functools
import logging
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
from uncertainty_est.building import build_data
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


@pytest.fixture(autouse=True)
def _fresh_logger() -> None:
    """What a command of an earlier test has done to the package's logger (``log_to_console``) is undone."""
    logger = logging.getLogger("uncertainty_est")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


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
        elif "thoroughly" in item.fixturenames:  # which `trained` asks for, too
            item.add_marker(pytest.mark.xdist_group(str(model)))


# Epochs that are enough for most methods, by kind, and what all are to reach on ``between``.
SHORT = {"fc": 12, "img": 9}
LEAST_AUROC = 70.0

# At most so often in one step of training, or so many networks, where a method has such a setting.
FEW = {"posterior_samples": 5, "num_members": 3, "num_folds": 3, "folds": 3}


def with_few(node: Any) -> Any:
    """A configuration with the numbers in :data:`FEW` where it has larger ones."""
    if not isinstance(node, dict):
        return node
    lower = {key: min(value, FEW[key]) for key, value in node.items() if key in FEW and isinstance(value, int)}
    return {key: with_few(value) for key, value in node.items()} | lower


@dataclass
class Trained:
    """A method that was trained for a few epochs, and loaded again."""

    model: str
    fixed: dict[str, Any]
    results: dict[str, Any]
    run: checkpoints.Run

    @property
    def headline_auroc(self) -> float:
        """Of ``between``, in percent."""
        scores = self.results["ood"]["between"]
        return scores[next(iter(scores))]["AUROC"]

    @functools.cached_property
    def inputs(self) -> torch.Tensor:
        """Some of the in-distribution test split."""
        data = build_data(self.fixed)
        data.setup("test")
        return torch.cat([x for x, _ in data.id_test_loader()])[:24]


@pytest.fixture(scope="session")
def thoroughly(small_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains a model configuration, with more overrides if given; the same training is done once."""

    @functools.cache
    def train(model: str, *more: str) -> Trained:
        kind = model.split("_")[0]
        (fixed,) = compose_points(*quick_overrides(model, small_data(kind), tmp_path_factory.mktemp(model)), *more)
        fixed["model_config"] = with_few(fixed["model_config"])
        results = run(**fixed)
        return Trained(model, fixed, results, checkpoints.load(Path(results["run_dir"])))

    return train


@pytest.fixture(scope="session")
def trained(thoroughly: Callable[..., Trained]) -> Callable[[str], Trained]:
    """Trains a model configuration the first time it is asked for, and hands out the same run afterwards.

    Most learn in few epochs what :data:`LEAST_AUROC` asks for; the others are trained thoroughly.
    """

    def get(model: str) -> Trained:
        quick = thoroughly(model, f"fixed.trainer_config.max_epochs={SHORT[model.split('_')[0]]}")
        return quick if quick.headline_auroc > LEAST_AUROC else thoroughly(model)

    return get
