"""Every model configuration, found by globbing, is held to the contract of ``models/base.py``."""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import uncertainty_est.models
from tests.conftest import DATASETS, MODELS, Trained, compose_points
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data, build_method
from uncertainty_est.config import locate
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Method
from uncertainty_est.models.ce_baseline import CEBaseline

Get = Callable[[str], Trained]


def concrete_methods() -> list[type[Method]]:
    """Every class of ``models/`` that can be built."""
    classes: set[type[Method]] = set()
    for module in pkgutil.walk_packages(uncertainty_est.models.__path__, "uncertainty_est.models."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(cls, Method) and not inspect.isabstract(cls):
                classes.add(cls)
    return sorted(classes, key=lambda cls: cls.__name__)


@functools.cache
def is_table(dataset: str) -> bool:
    (fixed,) = compose_points(f"dataset={dataset}", "model=fc_ce_baseline")
    return len(fixed["data_shape"]) == 1


def some_inputs(trained: Trained) -> Tensor:
    data = build_data(trained.fixed)
    data.setup("test")
    return torch.cat([x for x, _ in data.id_test_loader()])[:24]


@pytest.mark.parametrize("model", MODELS)
def test_prediction_has_the_right_shapes_types_and_sums(model: str, trained: Get) -> None:
    run_ = trained(model)
    x = some_inputs(run_)
    prediction = run_.run.method.predict(x)
    assert prediction.scores, "a method has at least one score"
    for name, score in prediction.scores.items():
        assert score.shape == (len(x),), name
        assert score.dtype == torch.float32, name
        assert score.isfinite().all(), name
    headline = next(iter(prediction.scores.values()))
    assert headline.std() > 0, "the headline is the same for all inputs"
    if prediction.probs is not None:
        assert prediction.probs.shape == (len(x), run_.fixed["num_classes"])
        assert (prediction.probs >= 0).all()
        torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(len(x)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_everything_as_it_was(model: str, training: bool, trained: Get) -> None:
    run_ = trained(model)
    method, x = run_.run.method, some_inputs(run_)
    method.train(training)
    some = next(m for m in method.modules() if not list(m.children()))
    some.train(not training)  # a mode of its own must survive as well
    modes = [m.training for m in method.modules()]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    random = torch.random.get_rng_state()
    with torch.enable_grad():
        method.predict(x)
        assert torch.is_grad_enabled()
    assert [m.training for m in method.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in method.parameters())
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    method.eval()


@pytest.mark.parametrize("model", MODELS)
def test_scores_do_not_depend_on_batch_mates(model: str, trained: Get) -> None:
    run_ = trained(model)
    method, x = run_.run.method, some_inputs(run_)
    whole = method.predict(x)
    pieces = [method.predict(part) for part in (x[:1], x[1:8], x[8:])]
    for name, score in whole.scores.items():
        parts = torch.cat([piece.scores[name] for piece in pieces])
        torch.testing.assert_close(parts, score, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    if whole.probs is not None:
        parts = torch.cat([piece.probs for piece in pieces if piece.probs is not None])
        torch.testing.assert_close(parts, whole.probs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_save_and_load_give_the_same_scores(model: str, trained: Get, tmp_path: Path) -> None:
    run_ = trained(model)
    method, x = run_.run.method, some_inputs(run_)
    checkpoints.save_config(tmp_path, run_.fixed)
    checkpoints.save_weights(tmp_path, method)
    again = checkpoints.load(tmp_path).method
    expected, got = method.predict(x), again.predict(x)
    assert list(got.scores) == list(expected.scores)
    for name, score in expected.scores.items():
        assert torch.equal(got.scores[name], score), name


@pytest.mark.parametrize("model", MODELS)
def test_the_headline_score_beats_chance_on_the_easiest_ood_set(model: str, trained: Get) -> None:
    scores = trained(model).results["ood"]["between"]
    headline = next(iter(scores))
    assert scores[headline]["AUROC"] > 70, scores


@pytest.mark.parametrize("model", MODELS)
def test_the_monitored_keys_are_logged(model: str, trained: Get) -> None:
    run_ = trained(model)
    with (run_.run.path / "logs" / "metrics.csv").open() as file:
        keys = set(csv.DictReader(file).fieldnames or [])
    assert {"train/loss", "val/loss"} <= {key.removesuffix("_step") for key in keys}
    for section in ("checkpoint_config", "earlystop_config"):
        monitor = (run_.fixed[section] or {}).get("monitor")
        assert monitor is None or monitor in keys


@pytest.mark.parametrize("model", MODELS)
def test_the_run_folder_holds_what_is_promised(model: str, trained: Get) -> None:
    folder = trained(model).run.path
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "checkpoint.pt", "splits.npz", "results.json", "logs"} <= names


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_model_composes_with_every_matching_data_set(model: str, dataset: str, tmp_path: Path) -> None:
    if model.startswith("img_") and is_table(dataset):
        pytest.skip("img_ methods are for images")
    (fixed,) = compose_points(f"dataset={dataset}", f"model={model}", f"fixed.data_root={tmp_path}")
    assert fixed["model"] == model
    assert fixed["dataset"] == dataset
    if dataset.startswith(("cifar", "svhn", "tiny_imagenet", "imagenet")):
        return  # composed and validated; the large networks are not worth building here
    assert isinstance(build_method({**fixed, "ood_dataset": fixed["ood_dataset"] or "any"}), Method)


def test_configurations_are_named_after_their_module() -> None:
    """``img_ce_baseline_variant`` is a variant of ``ce_baseline``: the longest module name that fits."""
    modules = {name.rsplit(".", 1)[-1]: name for name in [cls.__module__ for cls in concrete_methods()]}
    for model in MODELS:
        (fixed,) = compose_points(f"model={model}", "dataset=digits")
        rest = model.split("_", 1)[1]
        fitting = [name for name in modules if rest == name or rest.startswith(f"{name}_")]
        assert fitting, f"{model}: no module of this name"
        target = fixed["model_config"]["_target_"]
        assert target.rsplit(".", 1)[0] == modules[max(fitting, key=len)], model


def test_every_method_has_a_configuration() -> None:
    targets = {compose_points(f"model={m}", "dataset=digits")[0]["model_config"]["_target_"] for m in MODELS}
    configured = {locate(target) for target in targets}
    assert set(concrete_methods()) == configured


@pytest.mark.parametrize("cls", concrete_methods())
def test_no_constructor_swallows_keywords(cls: type[Method]) -> None:
    for base in cls.__mro__[: cls.__mro__.index(Method) + 1]:
        kinds = {p.kind for p in inspect.signature(base.__init__).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, base


def test_a_method_that_needs_outliers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CEBaseline, "needs_ood", True)
    (fixed,) = compose_points("model=fc_ce_baseline", "dataset=wine")
    with pytest.raises(ConfigError, match=r"fixed\.ood_dataset: CEBaseline trains on outliers"):
        build_method(fixed)
    assert isinstance(build_method({**fixed, "ood_dataset": "uniform_noise"}), CEBaseline)
