"""Names of data sets: what is found for each, and which are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from uncertainty_est import data_names
from uncertainty_est.errors import ConfigError


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
    data_names.inline_sources(whole.fixed, sources)
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
        node = data_names.find_source(name, sources, data)
        assert node["_target_"] == "uncertainty_est.data.sources.pack.NpzPack"
        assert node["name"] == name
    unscaled = data_names.find_source("digits_embedded_unscaled", sources, data)
    assert unscaled["source"] == data_names.find_source("digits_embedded", sources, data)
    with pytest.raises(ConfigError, match=r"no data set 'digitz'.*did you mean 'digits'"):
        data_names.find_source("digitz_embedded", sources, data)
    np.savez(data / "elsewhere_embedded.npz", x_train=np.zeros(1))
    assert data_names.find_source("elsewhere_embedded", sources, data)["name"] == "elsewhere_embedded"


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
        assert data_names.find_source(name, tmp_path, tmp_path) == expected
    published = {"_target_": "a.D", "corruption": "fog", "severity": 5}
    assert data_names.find_source("digits_c_fog_5", tmp_path, tmp_path) == published
    unscaled = data_names.find_source("digits_fog_1_unscaled", tmp_path, tmp_path)
    assert unscaled["source"] == data_names.find_source("digits_fog_1", tmp_path, tmp_path)
    for unknown in ("digitz_fog_3", "digits_fog_0", "digits_fog_6", "digits_3"):
        with pytest.raises(ConfigError, match=f"no data set '{unknown}'"):
            data_names.find_source(unknown, tmp_path, tmp_path)


def test_what_is_made_of_the_in_distribution_set_is_made_of_it_as_the_user_has_it(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\nval_fraction: 0.1\n")
    names = ["digits_fog_3", "digits_unscaled"]
    fixed = {"dataset": "digits", "data_root": ".", "test_ood_datasets": names}
    whole = OmegaConf.create({"fixed": {**fixed, "sources": {"digits": {"val_fraction": 0.3}}}})
    data_names.inline_sources(whole.fixed, tmp_path)
    assert all(whole.fixed.sources[name].source.val_fraction == 0.3 for name in names)


def test_what_the_user_set_for_a_source_wins(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\nval_fraction: 0.1\n")
    whole = OmegaConf.create(
        {"fixed": {"dataset": "digits", "data_root": ".", "sources": {"digits": {"val_fraction": 0.3}}}}
    )
    data_names.inline_sources(whole.fixed, tmp_path)
    assert whole.fixed.sources.digits == {"_target_": "a.B", "val_fraction": 0.3}


def test_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("_target_: a.B\n")
    with pytest.raises(ConfigError, match=r"no data set 'digitz'.*did you mean 'digits'"):
        data_names.find_source("digitz", tmp_path, tmp_path)


def test_names_in_a_grid_are_inlined_too() -> None:
    grid = {
        "ood_dataset": {"type": "choice", "options": ["a", "b"]},
        "seed": {"type": "choice", "options": [1]},
    }
    assert data_names.grid_dataset_names(grid) == ["a", "b"]
    assert data_names.grid_dataset_names(None) == []
