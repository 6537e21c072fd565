"""Validation of every key, and what may be built."""

from __future__ import annotations

from typing import Any

import pytest

from uncertainty_est import config
from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.signatures import signature_of


def schema(*, seed: int, model_config: dict[str, Any], name: str = "") -> None:
    """Stands in for ``run``: its keywords are the keys that are allowed."""


SCHEMA = signature_of(schema)

MODEL = {
    "_target_": "uncertainty_est.models.ce_baseline.CEBaseline",
    "network": {
        "_target_": "uncertainty_est.networks.fc.FC",
        "data_shape": [3],
        "num_classes": 2,
        "hidden_dims": [4],
    },
}


def test_did_you_mean_names_the_nearest_only() -> None:
    assert did_you_mean("scor", ["score", "seed"]) == "; did you mean 'score'?"
    assert did_you_mean("zzz", ["score", "seed"]) == ""


def test_a_right_configuration_passes_and_builds() -> None:
    config.validate({"seed": 1, "model_config": MODEL}, SCHEMA)
    method = config.build(MODEL, own_only=True)
    assert method.network.head.out_features == 2


def test_all_problems_are_reported_at_once_with_paths_and_nearest_names() -> None:
    wrong = {
        "sead": 1,
        "model_config": {**MODEL, "netwerk": 1, "network": {**MODEL["network"], "hiden_dims": [3]}},  # type: ignore[dict-item]
    }
    with pytest.raises(ConfigError) as error:
        config.validate(wrong, SCHEMA)
    text = str(error.value)
    assert "fixed.sead: run takes no such argument; did you mean 'seed'?" in text
    assert "fixed.seed: run needs this argument" in text
    assert "model_config.netwerk: CEBaseline takes no such argument; did you mean 'network'?" in text
    assert "model_config.network.hiden_dims: FC takes no such argument; did you mean 'hidden_dims'?" in text


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.name: a value must be given"):
        config.validate({"seed": 1, "model_config": MODEL, "name": "???"}, SCHEMA)


def test_a_partial_node_may_leave_arguments_open() -> None:
    node = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.1}
    config.validate({"seed": 1, "model_config": {**MODEL, "optimizer": node}}, SCHEMA)


@pytest.mark.parametrize(
    ("target", "own_only", "message"),
    [
        ("os.system", False, "may not be built"),
        ("uncertainty_est.run.os.system", False, "there is no module"),
        ("uncertainty_est.files.os", False, "is defined in"),
        ("uncertainty_est.config.importlib", True, "is defined in"),
        ("torch.optim.AdamW", True, "may not be built"),
        ("uncertainty_est.files.make_folder", True, "is not a class"),
        ("uncertainty_est.nothing.Here", False, "there is no module"),
        ("uncertainty_est.networks.fc.FCC", False, "did you mean 'FC'"),
        ("uncertainty_estimates.Evil", False, "may not be built"),
        (3, False, "may not be built"),
    ],
)
def test_only_allowed_classes_are_located(target: Any, own_only: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.locate(target, "model_config", own_only=own_only)
    with pytest.raises(ConfigError, match=message):
        config.describe(target, "model_config", own_only=own_only)
    with pytest.raises(ConfigError, match=message):
        config.build({"nested": [1], "_target_": target}, own_only=own_only)


def test_a_foreign_target_is_found_at_any_depth() -> None:
    node = {
        **MODEL,
        "network": {**MODEL["network"], "layers": [{"_target_": "os.system", "command": "true"}]},
    }  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"layers\[0\]\._target_: 'os.system' may not be built"):
        config.build(node, own_only=True)


def test_a_constructor_that_refuses_a_value_names_its_class() -> None:
    node = {
        "_target_": "uncertainty_est.models.deep_ensemble.DeepEnsemble",
        "num_members": 1,
        "network": {**MODEL["network"], "_partial_": True},  # type: ignore[dict-item]
    }
    with pytest.raises(ConfigError, match="DeepEnsemble: num_members must be at least 2, got 1"):
        config.build(node)
