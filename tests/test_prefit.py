"""Densities fitted before training: once for the same data and settings, again from a damaged file, by a command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import compose_points
from tests.processes import Command
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data, build_method
from uncertainty_est.densities.spherical_mixture import SphericalMixture
from uncertainty_est.errors import ConfigError
from uncertainty_est.fit_densities import fit_densities
from uncertainty_est.models.ccu import CCU
from uncertainty_est.prefit import FOLDER, fitted_state, prefit
from uncertainty_est.run import run

CPU = torch.device("cpu")


def point(folder: Path, *overrides: str, model: str = "fc_ccu") -> dict[str, Any]:
    (fixed,) = compose_points(
        "dataset=gaussian2d",
        f"model={model}",
        "trainer=cpu",
        "logger=none",
        f"fixed.output_folder={folder}",
        "fixed.trainer_config.max_epochs=1",
        "fixed.trainer_config.enable_progress_bar=false",
        *overrides,
    )
    return fixed


def fit(fixed: dict[str, Any], folder: Path) -> tuple[CCU, Path | None]:
    method = build_method(fixed)
    assert isinstance(method, CCU)
    return method, prefit(method, build_data(fixed), folder, CPU)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every mixture that is fitted."""
    calls: list[int] = []
    original = SphericalMixture.fit

    def counted(self: SphericalMixture, z: torch.Tensor, seed: int = 0) -> None:
        calls.append(len(z))
        original(self, z, seed)

    monkeypatch.setattr(SphericalMixture, "fit", counted)
    return calls


def test_the_second_fit_is_read_from_the_file(tmp_path: Path, fits: list[int]) -> None:
    first, path = fit(point(tmp_path), tmp_path)
    assert path is not None
    assert path.parent == tmp_path / FOLDER
    assert len(fits) == 2
    second, again = fit(point(tmp_path, "fixed.seed=7", "fixed.model_config.optimizer.lr=0.5"), tmp_path)
    assert again == path
    assert len(fits) == 2
    for name, value in fitted_state(first).items():
        assert torch.equal(fitted_state(second)[name], value), name
    assert all(bool(module.fitted) for module in (second.metric, second.inside, second.outside))


@pytest.mark.parametrize(
    "change",
    [
        "fixed.split_seed=2",
        "+fixed.sources.uniform_noise.n=500",
        "fixed.transform.scaling=robust",
        "fixed.model_config.whitening=singular",
        "fixed.model_config.num_components=5",
        "fixed.model_config.max_fit_items=300",
        "fixed.model_config.fit_seed=3",
    ],
)
def test_other_data_or_settings_are_fitted_anew(tmp_path: Path, fits: list[int], change: str) -> None:
    _, path = fit(point(tmp_path), tmp_path)
    _, other = fit(point(tmp_path, change), tmp_path)
    assert other != path
    assert len(fits) == 4


@pytest.mark.parametrize("content", [b"", b"PK not a file of tensors", None])
def test_a_damaged_file_is_told_of_and_written_again(
    tmp_path: Path, fits: list[int], caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    first, path = fit(point(tmp_path), tmp_path)
    assert path is not None
    if content is None:
        other = build_method(point(tmp_path, "fixed.model_config.num_components=5"))
        checkpoints.save_state(path, other, fitted_state(other))
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="uncertainty_est"):
        second, again = fit(point(tmp_path), tmp_path)
    assert again == path
    assert "fitted again" in caplog.text
    assert len(fits) == 4
    assert torch.equal(first.inside.mean, second.inside.mean)
    fit(point(tmp_path), tmp_path)
    assert len(fits) == 4


def test_the_command_fits_what_the_run_then_finds(tmp_path: Path, fits: list[int]) -> None:
    files = fit_densities([point(tmp_path)])
    assert [path.parent for path in files] == [tmp_path / FOLDER]
    assert len(fits) == 2
    results = run(**point(tmp_path, "fixed.model_config.mixture_lr=0.0"))
    assert len(fits) == 2
    trained = checkpoints.load(Path(results["run_dir"])).method
    content = torch.load(files[0], weights_only=True)["state_dict"]
    for name, value in fitted_state(trained).items():
        assert torch.equal(value, content[name]), name


def test_a_run_that_starts_from_fitted_densities_fits_none(tmp_path: Path, fits: list[int]) -> None:
    results = run(**point(tmp_path))
    assert len(fits) == 2
    fixed = point(tmp_path / "other", f"fixed.init_from={results['run_dir']}", "fixed.trainer_config.max_epochs=0")
    again = run(**fixed)
    assert len(fits) == 2
    assert not (tmp_path / "other" / FOLDER).exists()
    assert again["classification"] == results["classification"]
    assert fit_densities([fixed]) == []


def test_the_fit_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    """A run is the same whether its densities were fitted or found."""
    states = [checkpoints.read_weights(Path(run(**point(tmp_path, "fixed.seed=3"))["run_dir"])) for _ in range(2)]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_a_method_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CEBaseline fits nothing before training"):
        fit_densities([point(tmp_path, model="fc_ce_baseline")])


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    command = ["-m", "uncertainty_est.fit_densities", "dataset=two_moons", "trainer=cpu"]
    options = [f"fixed.output_folder={tmp_path}", "+fixed.sources.two_moons.n=500"]
    done = Command([*command, "model=fc_ccu", *options]).wait()
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / FOLDER).iterdir()
    assert str(file) in done.stdout
    refused = Command([*command, "model=fc_ccuu", *options]).wait()
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "did you mean 'fc_ccu'" in refused.stderr
