"""Every model configuration, found by globbing, is held to the contract of ``models/base.py``."""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import uncertainty_est.models
from tests.conftest import CONFIGS, DATASETS, LEAST_AUROC, MODELS, Trained, compose_points
from uncertainty_est import checkpoints
from uncertainty_est.building import build_method
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
def composed(model: str, dataset: str) -> dict[str, Any]:
    (fixed,) = compose_points(f"dataset={dataset}", f"model={model}")
    return fixed


def is_table(dataset: str) -> bool:
    return len(composed("fc_ce_baseline", dataset)["data_shape"]) == 1


def structure(node: Any) -> Any:
    """Keys and types, with the classes that are built: what composing and validating look at, values aside."""
    if isinstance(node, dict):
        return frozenset((key, value if key == "_target_" else structure(value)) for key, value in node.items())
    return type(node)


@functools.cache
def unlike() -> set[str]:
    """Of every kind of data sets, alike in structure (and images in shape), one of fewest and one of most inputs."""
    kinds: dict[Any, dict[int, str]] = {}
    for dataset in DATASETS:
        fixed = composed("fc_ce_baseline" if is_table(dataset) else "img_ce_baseline", dataset)
        shape = fixed["data_shape"]
        alike = {key: value for key, value in fixed.items() if key not in ("sources", "ood_groups", "data_shape")}
        kind = (structure(alike), "table" if is_table(dataset) else str(shape))
        kinds.setdefault(kind, {}).setdefault(math.prod(shape), dataset)
    return {sizes[end(sizes)] for sizes in kinds.values() for end in (min, max)}


@pytest.mark.parametrize("model", MODELS)
def test_prediction_has_the_right_shapes_types_and_sums(model: str, trained: Get) -> None:
    run_ = trained(model)
    x = run_.inputs
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
    method, x = run_.run.method, run_.inputs
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
    method, x = run_.run.method, run_.inputs
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
    method, x = run_.run.method, run_.inputs
    checkpoints.save_config(tmp_path, run_.fixed)
    checkpoints.save_weights(tmp_path, method)
    again = checkpoints.load(tmp_path).method
    expected, got = method.predict(x), again.predict(x)
    assert list(got.scores) == list(expected.scores)
    for name, score in expected.scores.items():
        assert torch.equal(got.scores[name], score), name


@pytest.mark.parametrize("model", MODELS)
def test_the_headline_score_beats_chance_on_the_easiest_ood_set(model: str, trained: Get) -> None:
    run_ = trained(model)
    assert run_.headline_auroc > LEAST_AUROC, run_.results["ood"]["between"]


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


def compose_and_build(model: str, dataset: str) -> None:
    fixed = composed(model, dataset)
    assert fixed["model"] == model
    assert fixed["dataset"] == dataset
    if dataset.startswith(("cifar", "svhn", "tiny_imagenet", "imagenet")):
        return  # composed and validated; the large networks are not worth building here
    assert isinstance(build_method({**fixed, "ood_dataset": fixed["ood_dataset"] or "any"}), Method)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_composes_with_every_kind_of_data_set_and_where_it_has_updates(model: str) -> None:
    """Composing and validating look at nothing in which other data sets differ from these."""
    updated = {path.stem for path in (CONFIGS / "model" / "updates").glob("*.yaml")}
    matching = [dataset for dataset in DATASETS if model.startswith("fc_") or not is_table(dataset)]
    for dataset in matching:
        if dataset in unlike() or f"{model}_{dataset}" in updated:
            compose_and_build(model, dataset)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_data_set_composes_with_a_model_for_it(dataset: str) -> None:
    compose_and_build("fc_ce_baseline" if is_table(dataset) else "img_ce_baseline", dataset)


def test_configurations_are_named_after_their_module() -> None:
    """``img_ce_baseline_variant`` is a variant of ``ce_baseline``: the longest module name that fits."""
    modules = {name.rsplit(".", 1)[-1]: name for name in [cls.__module__ for cls in concrete_methods()]}
    for model in MODELS:
        rest = model.split("_", 1)[1]
        fitting = [name for name in modules if rest == name or rest.startswith(f"{name}_")]
        assert fitting, f"{model}: no module of this name"
        target = composed(model, "digits")["model_config"]["_target_"]
        assert target.rsplit(".", 1)[0] == modules[max(fitting, key=len)], model


def test_every_method_has_a_configuration() -> None:
    configured = {locate(composed(model, "digits")["model_config"]["_target_"]) for model in MODELS}
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
