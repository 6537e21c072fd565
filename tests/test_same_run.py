"""Two configurations are of one run where they say the same, however much of it they spell out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import compose_points
from uncertainty_est.errors import ConfigError
from uncertainty_est.resume import begun_run
from uncertainty_est.same_run import settings_of


def composed(*overrides: str) -> dict[str, Any]:
    (fixed,) = compose_points("dataset=digits", "model=img_ce_baseline", "network=resnet18", *overrides)
    return fixed


def test_defaults_that_are_not_spelt_out_are_the_same_settings() -> None:
    old = composed()
    for key in ("compile", "channels_last", "on_divergence", "ood_groups"):
        old.pop(key, None)
    del old["model_config"]["network"]["stem"]
    del old["sources"]["digits"]["split_seed"]  # 1 is the default, too
    assert settings_of(old) == settings_of(composed("fixed.ood_groups=null"))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("fixed.output_folder=elsewhere", True),
        ("fixed.resume=auto", True),
        ("fixed.trainer_config.enable_progress_bar=false", True),
        ("fixed.compile=true", False),
        ("fixed.model_config.network.stem=small", False),
        ("fixed.model_config.optimizer.weight_decay=0.123", False),
        ("fixed.data_root=/another", False),
    ],
)
def test_other_settings(override: str, same: bool) -> None:
    assert (settings_of(composed(override)) == settings_of(composed())) is same


def test_paths_are_the_places_that_they_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "mine" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "cat" / "1.png").touch()
    new = composed(f"fixed.data_root={tmp_path}/data", "fixed.test_ood_datasets=[svhn,mine]", "+fixed.init_from=null")
    old = yaml.safe_load(yaml.safe_dump(new).replace(str(tmp_path), "."))
    assert old["sources"]["mine"]["folders"] == ["./data/mine"]
    monkeypatch.chdir(tmp_path)
    assert settings_of(old) == settings_of(new)
    assert settings_of(old | {"init_from": "runs/a"}) == settings_of(new | {"init_from": f"{tmp_path}/runs/a"})


def test_the_newest_folder_of_the_same_run_is_found(tmp_path: Path) -> None:
    fixed = composed(f"fixed.output_folder={tmp_path}", "fixed.resume=auto")
    old = {key: value for key, value in fixed.items() if key not in ("compile", "resume")}
    unknown = old | {"averaging_config": {"_target_": "uncertainty_est.averaging.Gone"}}
    for number, (name, config) in enumerate(
        {"run": old, "run-2": fixed, "run-3": fixed | {"seed": 7}, "run-4": unknown}.items()
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        os.utime(tmp_path / name, (number, number))
    assert begun_run(tmp_path, "run", fixed) == tmp_path / "run-2"
    os.utime(tmp_path / "run", (9, 9))
    assert begun_run(tmp_path, "run", fixed) == tmp_path / "run"
    with pytest.raises(ConfigError, match="there is no module"):
        settings_of(unknown)
