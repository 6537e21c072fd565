"""DEUP as a method: what its folds are trained on, what it keeps, and that processes and repetitions agree."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.processes import in_two_processes
from uncertainty_est.error_prediction.features import ErrorFeatures
from uncertainty_est.error_prediction.folds import held_out_by_fold, pointwise_errors
from uncertainty_est.error_prediction.predictor import ErrorPredictor, fit_distilled
from uncertainty_est.errors import ConfigError, NotFittedError, TrainingError
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.deup import DEUP, all_outputs
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.wide_resnet import WideResNet

Batches = list[tuple[Tensor, Tensor]]
N, C = 120, 5


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(C, (N,), generator=generator)
    return torch.randn(N, 3, generator=generator) + 2 * torch.eye(C, 3)[y], y


def batches(rank: int = 0, world: int = 1) -> Batches:
    x, y = data()
    return list(zip(x[rank::world].split(32), y[rank::world].split(32), strict=True))


def deup(classes: int = C, **settings: object) -> DEUP:
    torch.manual_seed(0)
    network = partial(FC, data_shape=[3], num_classes=classes, hidden_dims=[8], activation="tanh", dropout=0.2)
    few = {"fold_epochs": 2, "batch_size": 16, "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    return DEUP(network, [3], **{**few, **settings})  # type: ignore[arg-type]


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What each fold's network was trained on, filled while folds are trained."""
    calls: list[tuple[Tensor, Tensor]] = []
    original = DEUP._trained_on

    def spy(self: DEUP, x: Tensor, y: Tensor, fold: int) -> torch.nn.Module:
        calls.append((x, y))
        return original(self, x, y, fold)

    monkeypatch.setattr(DEUP, "_trained_on", spy)
    return calls


def test_folds_are_fresh_networks_that_never_saw_a_group_of_classes(trained_on: list[tuple[Tensor, Tensor]]) -> None:
    method = deup(spare=0.5)
    rows = []
    method._fit_rows, fit = rows.append, method._fit_rows  # type: ignore[method-assign]
    method.fit_posthoc(batches())
    x, y = data()
    assert len(trained_on) == 5
    for k, (inputs, labels) in enumerate(trained_on):
        assert set(labels.tolist()) == set(range(C)) - {k}
        assert len(labels) < (y != k).sum(), "some samples of the classes that it knows are spared"
        assert torch.isin(inputs[:, 0], x[:, 0]).all()
    fit(rows[0])
    held_out = N - torch.tensor([len(labels) for _, labels in trained_on])
    assert len(rows[0].errors) == held_out.sum()
    assert torch.equal(rows[0].samples.unique(), torch.arange(N))


def test_it_keeps_the_classifier_its_densities_and_the_predictor_only() -> None:
    method = deup()
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    method.train()
    method.fit_posthoc(batches())
    assert method.training
    assert {name.split(".")[0] for name in method.state_dict()} == {"network", "describe", "predictor"}
    for name, value in method.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert set(method.parameter_groups()) == set(method.network.parameters())


@pytest.mark.parametrize("settings", [{}, {"algorithm": 1}, {"features": ["density", "input", "logits", "seen"]}])
def test_the_score_is_the_negative_prediction_of_the_classifiers_loss(settings: dict[str, object]) -> None:
    method = deup(**settings)
    assert method.posthoc_split == ("val" if settings.get("algorithm") == 1 else "train")
    method.fit_posthoc(batches())
    x, y = data()
    outputs = all_outputs(method.network.eval(), x)
    describe = ErrorFeatures(**method._feature_settings)
    known = torch.ones_like(y, dtype=torch.bool)
    if method.algorithm == 1:
        known = ~held_out_by_fold(y, method.folds, "stratified", torch.Generator().manual_seed(method.seed))[0]
    describe.fit({name: value[known] for name, value in outputs.items()}, y[known])
    torch.testing.assert_close(method.describe(outputs), describe(outputs))
    prediction, plain = method.predict(x), CEBaseline(method.network).predict(x)
    assert list(prediction.scores) == ["deup", *plain.scores]
    torch.testing.assert_close(prediction.scores["deup"], -method.predictor(describe(outputs)).float())
    assert (prediction.scores["deup"] < 0).all()
    assert torch.equal(prediction.probs, plain.probs)


def test_less_the_entropy_it_is_at_least_zero() -> None:
    plain, excess = deup(target="none"), deup(target="none", aleatoric=True)
    plain.fit_posthoc(batches()), excess.fit_posthoc(batches())
    x = data()[0]
    scores = plain.get_ood_scores(x)
    expected = (-scores["deup"] + scores["Entropy"]).clamp(min=0)
    torch.testing.assert_close(-excess.get_ood_scores(x)["deup"], expected)
    assert 0 < (expected == 0).sum() < N


def test_algorithm_1_describes_a_sample_by_densities_that_have_not_seen_it() -> None:
    method = deup(algorithm=1, features=["density"], folds=4)
    rows = []
    method._fit_rows = rows.append  # type: ignore[method-assign]
    method.fit_posthoc(batches())
    x, y = data()
    outputs = all_outputs(method.network.eval(), x)
    assert torch.equal(rows[0].samples.sort().values, torch.arange(N))
    torch.testing.assert_close(rows[0].errors, pointwise_errors("classification", outputs, y)[rows[0].samples])
    whole = method._new_features()
    whole.fit(outputs, y)
    own = whole(outputs)[rows[0].samples]
    assert (rows[0].features < own).double().mean() > 0.7, "what a density has seen it holds for likelier"


def test_torch_uncertaintys_variant_is_the_cores_on_the_validation_split() -> None:
    method = deup(variant="torch_uncertainty")
    assert method.posthoc_split == "val"
    method.fit_posthoc(batches())
    x, y = data()
    outputs = all_outputs(method.network.eval(), x)
    logits = outputs["logits"]
    probs = logits.softmax(-1)
    features = torch.cat([logits, probs.amax(-1, keepdim=True), torch.special.entr(probs).sum(-1, keepdim=True)], -1)
    torch.manual_seed(method.seed)  # as the package's own weights would be drawn
    core = fit_distilled(
        lambda: ErrorPredictor(C + 2, [64], target="none"), features, pointwise_errors("classification", outputs, y)
    )
    torch.testing.assert_close(method.get_ood_scores(x)["deup"], -core(features).detach().float(), atol=1e-5, rtol=1e-5)


def test_of_the_seed_alone_and_leaves_global_generators_alone() -> None:
    states = []
    for global_seed, seed in ((1, 1), (2, 1), (1, 2)):
        method = deup(seed=seed)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        method.fit_posthoc(batches())
        assert torch.equal(torch.get_rng_state(), before)
        states.append(method.predictor.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert not torch.equal(states[2]["net.0.weight"], states[0]["net.0.weight"])


def test_networks_with_batch_statistics_and_images() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 8, 8, generator=generator), torch.arange(60) % 4
    network = partial(WideResNet, data_shape=[1, 8, 8], num_classes=4, depth=10, widen_factor=1)
    method = DEUP(network, [1, 8, 8], fold_epochs=1, min_jitter=1e-3, optimizer=partial(torch.optim.SGD, lr=0.01))
    assert method.folds == 4, "no more than classes"
    method.fit_posthoc([(x, y)])
    assert method.get_ood_scores(x)["deup"].isfinite().all()


def _fit_on_rank(rank: int, folder: Path) -> None:
    for name, settings in SHARED.items():
        method = deup(**settings)
        method.fit_posthoc(batches(rank, 2))
        torch.save(method.state_dict(), folder / f"{name}-{rank}.pt")


SHARED: dict[str, dict[str, object]] = {
    "groups": {},
    "seen": {"features": ["entropy", "seen"], "fold_mode": "random", "folds": 3},
    "one": {"algorithm": 1},
    "variant": {"variant": "torch_uncertainty"},
}


def test_two_processes_hold_the_state_of_one(tmp_path: Path) -> None:
    assert in_two_processes(_fit_on_rank, tmp_path, tmp_path) == [0, 0]
    for name, settings in SHARED.items():
        single = deup(**settings)
        single.fit_posthoc(batches())
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2))
        for key, value in single.state_dict().items():
            assert torch.equal(first[key], second[key]), (name, key)
            torch.testing.assert_close(first[key], value, msg=lambda m, n=name, k=key: f"{n} {k}: {m}")


def test_unfitted() -> None:
    with pytest.raises(NotFittedError):
        deup().predict(data()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 6, "fold_mode": "class_groups"}, r"fixed\.model_config\.folds: 5 classes cannot be left out in 6"),
        ({"features": ["densty"]}, r"fixed\.model_config\.features: 'densty' is none of .* did you mean 'density'"),
        ({"algorithm": 3}, "algorithm must be 1 or 2"),
        ({"variant": "lite"}, "variant must be one of paper, torch_uncertainty"),
        ({"fold_mode": "contiguous"}, "fold_mode must be one of class_groups, random, stratified"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"spare": 1.5}, r"spare in \[0, 1\]"),
        ({"aleatoric": True}, "set target=none"),
        ({"variant": "torch_uncertainty", "target": "log"}, "leave both null"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deup(**settings)


def test_two_classes_are_cut_by_samples() -> None:
    assert deup(classes=2).fold_mode == "stratified"


def test_what_goes_wrong_in_the_fit_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.optimizer: training needs an optimizer"):
        deup(optimizer=None).fit_posthoc(batches())
    with pytest.raises(TrainingError, match=r"fold 0 is no longer a number; lower fixed\.model_config\.optimizer\.lr"):
        deup(optimizer=partial(torch.optim.SGD, lr=1e38)).fit_posthoc(batches())
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.folds: 10 samples cannot be cut into 20"):
        x, y = data()
        deup(folds=20, fold_mode="random").fit_posthoc([(x[:10], y[:10])])
