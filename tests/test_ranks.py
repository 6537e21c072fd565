"""What is fitted or chosen beside training is the same by two processes as by one, for every method that does so."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MODELS, Trained
from tests.processes import in_two_processes
from uncertainty_est.building import build_data, build_method
from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.models.base import Method
from uncertainty_est.prefit import prefit

HOOKS = ("fit_before", "fit_posthoc", "tune")
CPU = torch.device("cpu")


def hooks(config: str) -> set[str]:
    """Those that a method has of its own; by the name, as the contract has it, which is that of the method's module."""
    try:
        module = importlib.import_module(f"uncertainty_est.models.{config.removeprefix('fc_')}")
    except ModuleNotFoundError:
        return set()
    methods = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    return {
        hook
        for cls in methods
        for hook in HOOKS
        if issubclass(cls, Method) and getattr(cls, hook) is not getattr(Method, hook)
    }


FITTING = [model for model in MODELS if model.startswith("fc_") and hooks(model)]


def begun(trained: Trained) -> tuple[Method, dict[str, Any]]:
    """The method with its networks' weights, nothing fitted and with settings to choose from, and its `fixed`."""
    chooses = "tune" in hooks(trained.model)
    config = trained.fixed["model_config"] | ({"epsilon": None} if chooses else {})
    fixed = trained.fixed | {"model_config": config, "val_ood_datasets": ["between"], "test_ood_datasets": []}
    torch.manual_seed(0)
    method = build_method(fixed)
    assert method.needs_val_ood == chooses
    fitted = tuple(f"{name}." for name, module in method.named_modules() if isinstance(module, Fitted))
    learned = {k: v for k, v in trained.run.method.state_dict().items() if not k.startswith(fitted)}
    method.load_state_dict(method.state_dict() | learned)
    return method, fixed


def finish(rank: int, begun: tuple[Method, dict[str, Any]], folder: Path, world_size: int) -> None:
    """What a run does beside training; leaves state and scores in a file of each rank's own."""
    method, data = copy.deepcopy(begun[0]), build_data(begun[1])
    prefit(method, data, folder / str(rank), CPU)
    if method.posthoc_split is not None:
        method.fit_posthoc(data.plain_loader(method.posthoc_split, rank=rank, world_size=world_size))
    if method.needs_val_ood:
        method.tune(data.plain_loader("val"), data.ood_loaders("val"))
    (x, _), *_ = data.id_test_loader()
    torch.save({"state": method.state_dict(), "scores": method.predict(x).scores}, folder / f"{rank}.pt")


def test_there_are_such_methods() -> None:
    found = {hook: {model for model in FITTING if hook in hooks(model)} for hook in HOOKS}
    assert "fc_ccu" in found["fit_before"]
    assert {"fc_ddu", "fc_deup", "fc_mahalanobis", "fc_temperature_scaling"} <= found["fit_posthoc"]
    assert {"fc_mahalanobis", "fc_odin"} <= found["tune"]


@pytest.mark.parametrize("model", FITTING)
def test_two_processes_fit_and_choose_what_one_does(
    model: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    start = begun(trained(model))
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    finish(0, start, one, 1)
    assert in_two_processes(finish, tmp_path, start, two, 2) == [0, 0]
    expected = torch.load(one / "0.pt", weights_only=True)
    assert any(not torch.equal(value, start[0].state_dict()[name]) for name, value in expected["state"].items())
    for rank in (0, 1):
        found = torch.load(two / f"{rank}.pt", weights_only=True)
        for name, value in expected["state"].items():
            torch.testing.assert_close(
                found["state"][name], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name, value in expected["scores"].items():
            torch.testing.assert_close(found["scores"][name], value, rtol=1e-4, atol=1e-5)
