"""Compiled networks and channels-last weights: the same training, and nothing left of them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import compose_points
from uncertainty_est import checkpoints
from uncertainty_est.errors import ConfigError
from uncertainty_est.launch import run_points
from uncertainty_est.networks.base import Network

FEW = ["+fixed.trainer_config.limit_train_batches=3", "fixed.trainer_config.max_epochs=1", "fixed.test_ood_datasets=[]"]
QUIET = ["trainer=cpu", "logger=none", "fixed.trainer_config.enable_progress_bar=false"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that were compiled, by the back end that makes graphs and derivatives but no kernels."""
    modules: list[nn.Module] = []
    compile_module = Network.compile

    def compile_quickly(self: nn.Module) -> None:
        modules.append(self)
        compile_module(self, backend="aot_eager")

    monkeypatch.setattr(Network, "compile", compile_quickly)
    return modules


def weights(tmp_path: Path, *overrides: str) -> dict[str, torch.Tensor]:
    (results,) = run_points(compose_points(*QUIET, *FEW, f"fixed.output_folder={tmp_path}", *overrides))
    return checkpoints.read_weights(Path(results["run_dir"]))


@pytest.mark.parametrize(
    ("model", "dataset", "options"),
    [
        ("fc_ce_baseline", "wine", ["fixed.compile=true"]),
        ("fc_deep_ensemble", "wine", ["fixed.compile=true"]),
        ("img_ce_baseline", "digits", ["fixed.channels_last=true"]),
        ("img_real_nvp", "digits", ["fixed.channels_last=true"]),  # holds a buffer of five axes
    ],
)
def test_training_is_the_same(
    model: str, dataset: str, options: list[str], compiled: list[nn.Module], tmp_path: Path
) -> None:
    common = [f"model={model}", f"dataset={dataset}"]
    plain, fast = weights(tmp_path, *common), weights(tmp_path, *common, *options)
    assert bool(compiled) == ("fixed.compile=true" in options)
    assert all(network._compiled_call_impl is None for network in compiled)
    assert plain.keys() == fast.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-5)
        assert fast[name].is_contiguous()


def test_channels_are_innermost_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = Network.forward

    def look(self: Network, x: torch.Tensor) -> torch.Tensor:
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        inner = all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
        seen.append(inner and len(convolutions) > 0)
        return forward(self, x)

    monkeypatch.setattr(Network, "forward", look)
    weights(tmp_path, "model=img_ce_baseline", "dataset=digits", "fixed.channels_last=true")
    assert seen and all(seen)


def test_derivatives_of_derivatives_are_refused_in_words(compiled: list[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fixed\.compile: SSM trains on derivatives in the input"):
        weights(tmp_path, "model=fc_ssm", "dataset=wine", "fixed.compile=true")


def test_a_value_that_is_no_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.compile: must be true or false, got 'maybe'"):
        compose_points("model=fc_ssm", "dataset=wine", "fixed.compile=maybe")


def test_a_fast_gpu_has_all_three() -> None:
    (fixed,) = compose_points("trainer=gpu_fast")
    chosen: dict[str, Any] = {key: fixed[key] for key in ("compile", "channels_last")}
    assert chosen == {"compile": True, "channels_last": True}
    assert fixed["trainer_config"]["precision"] == "bf16-mixed"
    assert fixed["trainer_config"]["accelerator"] == "gpu"
