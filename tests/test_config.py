"""Names of data sets, validation of every key, and what may be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

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


def test_sources_are_found_by_yaml_by_file_and_as_unscaled(tmp_path: Path) -> None:
    sources, data = tmp_path / "source", tmp_path / "data"
    sources.mkdir()
    data.mkdir()
    (sources / "digits.yaml").write_text("_target_: a.B\nshape: ${fixed.data_shape}\n")
    np.savez(data / "mine.npz", x_train=np.zeros(1))
    fixed = OmegaConf.create(
        {
            "dataset": "digits",
            "test_ood_datasets": ["mine", "digits_unscaled"],
            "data_root": str(data),
            "data_shape": [1, 2, 2],
            "split_seed": 3,
        }
    )
    whole = OmegaConf.create({"fixed": fixed})
    config.inline_sources(whole.fixed, sources)
    nodes = OmegaConf.to_container(whole.fixed.sources, resolve=True)
    assert nodes == {
        "digits": {"_target_": "a.B", "shape": [1, 2, 2]},
        "mine": {
            "_target_": "uncertainty_est.data.sources.pack.NpzPack",
            "root": str(data),
            "name": "mine",
            "shape": [1, 2, 2],
            "split_seed": 3,
        },
        "digits_unscaled": {
            "_target_": "uncertainty_est.data.sources.noise.Unscaled",
            "source": {"_target_": "a.B", "shape": [1, 2, 2]},
        },
    }


def test_an_embedded_set_is_a_file_that_may_be_written_later(tmp_path: Path) -> None:
    sources, data = tmp_path / "source", tmp_path / "data"
    sources.mkdir()
    data.mkdir()
    (sources / "digits.yaml").write_text("_target_: a.B\n")
    for name in ("digits_embedded", "digits_unscaled_embedded"):
        node = config.find_source(name, sources, data)
        assert node["_target_"] == "uncertainty_est.data.sources.pack.NpzPack"
        assert node["name"] == name
    unscaled = config.find_source("digits_embedded_unscaled", sources, data)
    assert unscaled["source"] == config.find_source("digits_embedded", sources, data)
    with pytest.raises(ConfigError, match=r"no data set 'digitz'.*did you mean 'digits'"):
        config.find_source("digitz_embedded", sources, data)
    np.savez(data / "elsewhere_embedded.npz", x_train=np.zeros(1))
    assert config.find_source("elsewhere_embedded", sources, data)["name"] == "elsewhere_embedded"


def test_a_corrupted_set_is_made_of_the_longest_name_that_is_one(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\n")
    (tmp_path / "digits_holdout.yaml").write_text("_target_: a.C\n")
    (tmp_path / "digits_c.yaml").write_text("_target_: a.D\ncorruption: null\nseverity: null\n")
    target = "uncertainty_est.data.sources.corrupted.Corrupted"
    for name, base, corruption in (
        ("digits_gaussian_noise_3", {"_target_": "a.B"}, "gaussian_noise"),
        ("digits_holdout_fog_3", {"_target_": "a.C"}, "fog"),
    ):
        expected = {"_target_": target, "source": base, "corruption": corruption, "severity": 3}
        assert config.find_source(name, tmp_path, tmp_path) == expected
    published = {"_target_": "a.D", "corruption": "fog", "severity": 5}
    assert config.find_source("digits_c_fog_5", tmp_path, tmp_path) == published
    unscaled = config.find_source("digits_fog_1_unscaled", tmp_path, tmp_path)
    assert unscaled["source"] == config.find_source("digits_fog_1", tmp_path, tmp_path)
    for unknown in ("digitz_fog_3", "digits_fog_0", "digits_fog_6", "digits_3"):
        with pytest.raises(ConfigError, match=f"no data set '{unknown}'"):
            config.find_source(unknown, tmp_path, tmp_path)


def test_what_is_made_of_the_in_distribution_set_is_made_of_it_as_the_user_has_it(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\nval_fraction: 0.1\n")
    names = ["digits_fog_3", "digits_unscaled"]
    fixed = {"dataset": "digits", "data_root": ".", "test_ood_datasets": names}
    whole = OmegaConf.create({"fixed": {**fixed, "sources": {"digits": {"val_fraction": 0.3}}}})
    config.inline_sources(whole.fixed, tmp_path)
    assert all(whole.fixed.sources[name].source.val_fraction == 0.3 for name in names)


def test_what_the_user_set_for_a_source_wins(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\nval_fraction: 0.1\n")
    whole = OmegaConf.create(
        {"fixed": {"dataset": "digits", "data_root": ".", "sources": {"digits": {"val_fraction": 0.3}}}}
    )
    config.inline_sources(whole.fixed, tmp_path)
    assert whole.fixed.sources.digits == {"_target_": "a.B", "val_fraction": 0.3}


def test_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\n")
    with pytest.raises(ConfigError, match=r"no data set 'digitz'.*did you mean 'digits'"):
        config.find_source("digitz", tmp_path, tmp_path)


def test_names_in_a_grid_are_inlined_too() -> None:
    grid = {
        "ood_dataset": {"type": "choice", "options": ["a", "b"]},
        "seed": {"type": "choice", "options": [1]},
    }
    assert config.grid_dataset_names(grid) == ["a", "b"]
    assert config.grid_dataset_names(None) == []
