"""What is fitted after training is the same by two processes as by one, for every method that has such a fit."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.conftest import MODELS, Trained
from uncertainty_est.models.base import Method
from uncertainty_est.run import build_data


def fits_after_training(config: str) -> bool:
    """By the name, as the contract has it: the configuration is called like the method's module."""
    try:
        module = importlib.import_module(f"uncertainty_est.models.{config.removeprefix('fc_')}")
    except ModuleNotFoundError:
        return False
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return any(c.posthoc_split is not None for c in own if issubclass(c, Method))


POSTHOC = [model for model in MODELS if model.startswith("fc_") and fits_after_training(model)]


def fit(rank: int, meeting: Path, trained: Trained, out: Path) -> None:
    """The fit of one of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    method, data = copy.deepcopy(trained.run.method), build_data(trained.fixed)
    assert method.posthoc_split is not None
    method.fit_posthoc(data.plain_loader(method.posthoc_split, rank=rank, world_size=2))
    torch.save({"state": method.state_dict(), "scores": scores(method, trained)}, out / f"{rank}.pt")
    distributed.destroy_process_group()


def scores(method: Method, trained: Trained) -> dict[str, torch.Tensor]:
    (x, _), *_ = build_data(trained.fixed).id_test_loader()
    return method.predict(x).scores


def test_there_are_such_methods() -> None:
    assert {"fc_ddu", "fc_mahalanobis", "fc_temperature_scaling"} <= set(POSTHOC)


@pytest.mark.parametrize("model", POSTHOC)
def test_two_processes_fit_what_one_does(model: str, trained: Callable[[str], Trained], tmp_path: Path) -> None:
    it = trained(model)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fit, args=(rank, tmp_path / "meeting", it, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in it.run.method.state_dict().items():
            torch.testing.assert_close(
                found["state"][name], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name, value in scores(it.run.method, it).items():
            torch.testing.assert_close(found["scores"][name], value, rtol=1e-4, atol=1e-5)
