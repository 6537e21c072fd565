"""What of a saved configuration is built when a run is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.config import build
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.ebm.vera import VERA

Data = Callable[[str], Path]


def saved(small_data: Data, folder: Path, **nodes: Any) -> Path:
    """A run's folder, without training, whose method's node has these keys on top."""
    (fixed,) = compose_points(*quick_overrides("fc_vera", small_data("fc"), folder))
    checkpoints.save_weights(folder, build(fixed["model_config"]))
    checkpoints.save_config(folder, {**fixed, "model_config": {**fixed["model_config"], **nodes}})
    return folder


def test_a_run_with_several_optimizers_loads_without_building_any(small_data: Data, tmp_path: Path) -> None:
    method = checkpoints.load(saved(small_data, tmp_path)).method
    assert isinstance(method, VERA)
    made = {name: value for name, value in vars(method).items() if name.startswith("_make_")}
    assert len(made) == 4
    assert set(made.values()) == {None}


@pytest.mark.parametrize("key", ["optimizer", "generator_optimizer", "posterior_optimizer", "scheduler"])
def test_what_training_needs_is_not_even_looked_at(key: str, small_data: Data, tmp_path: Path) -> None:
    checkpoints.load(saved(small_data, tmp_path, **{key: {"_target_": "os.system", "command": "true"}}))


def test_other_keys_build_our_own_classes_only(small_data: Data, tmp_path: Path) -> None:
    folder = saved(small_data, tmp_path, network={"_target_": "torch.optim.AdamW", "params": []})
    with pytest.raises(ConfigError, match="network"):
        checkpoints.load(folder)
