"""ODIN: closed forms of the step and of the tempered confidence, and the choice of both on outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tests.conftest import Trained, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.building import build_method
from uncertainty_est.errors import ConfigError, NotFittedError
from uncertainty_est.launch import run_points
from uncertainty_est.measures import tempered_confidence
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.odin import ODIN
from uncertainty_est.models.tuning import collect, mean_auroc
from uncertainty_est.networks.fc import FC

Batch = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """``f = W x``; the features are the inputs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.6652409557748218), (1000.0, 0.3336667221666528)])
def test_golden_confidences(temperature: float, expected: float) -> None:
    got = tempered_confidence(torch.tensor([[1.0, 2.0, 3.0]]), temperature)
    assert got.dtype == torch.float64 and got.item() == pytest.approx(expected, abs=1e-15)


def test_of_a_linear_classifier_step_and_score_are_known() -> None:
    """The gradient of ``ln p_c`` is ``(W_c - sum_k p_k W_k) / T``; each pixel moves by epsilon / std of its channel."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 12, generator=generator, dtype=torch.double)
    x = torch.randn(9, 3, 2, 2, generator=generator, dtype=torch.double)
    std, t, epsilon = torch.tensor([0.2, 0.5, 0.25]), 10.0, 0.01
    logits = x.flatten(1) @ weight.T
    p, predicted = (logits / t).softmax(-1), logits.argmax(-1)
    gradient = (weight[predicted] - p @ weight).view_as(x) / t
    moved = x + epsilon / std.view(3, 1, 1) * gradient.sign()
    expected = (moved.flatten(1) @ weight.T / t).softmax(-1).amax(-1)
    method = ODIN(Linear(weight.float()), temperature=t, epsilon=epsilon, std=std.tolist())  # type: ignore[arg-type]
    score = method.get_ood_scores(x.float())["ODIN"]
    torch.testing.assert_close(score.double(), expected, atol=1e-6, rtol=0)
    still = ODIN(method.network, temperature=t, epsilon=0.0).get_ood_scores(x.float())["ODIN"]
    assert (score > still).all()


def test_without_step_and_temperature_it_is_the_confidence(network: FC, batch: Batch) -> None:
    scores = ODIN(network, temperature=1.0, epsilon=0.0).get_ood_scores(batch[0])
    assert torch.equal(scores["ODIN"], scores["max p(y|x)"])
    high = ODIN(network).get_ood_scores(batch[0])["ODIN"]
    assert (high >= 0.25).all() and (high <= 1).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_classifiers_own_answers_are_those_at_the_input_itself(network: FC, batch: Batch, mode: type) -> None:
    plain = CEBaseline(network).predict(batch[0])
    with mode():
        prediction = ODIN(network, epsilon=0.5).predict(batch[0])
    assert list(prediction.scores) == ["ODIN", *plain.scores]
    assert torch.equal(prediction.probs, plain.probs) and not prediction.probs.requires_grad
    for name, score in plain.scores.items():
        assert torch.equal(prediction.scores[name], score)
    assert all(p.grad is None for p in network.parameters())


def test_an_attack_sees_the_gradient_of_the_classifiers_probabilities(network: FC, batch: Batch) -> None:
    x = batch[0].clone().requires_grad_()
    gradients = []
    for method in (CEBaseline(network), ODIN(network)):
        prediction = method.eval()._predict(x)
        assert prediction.probs is not None
        gradients += torch.autograd.grad(prediction.probs.amax(-1).sum(), x)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0


def test_it_chooses_what_an_exhaustive_search_finds_best(network: FC, batch: Batch) -> None:
    temperatures, epsilons = [1.0, 10.0, 1000.0], [0.0, 0.05, 0.2]
    sets = {name: torch.randn(25, 3, generator=torch.Generator().manual_seed(k)) for k, name in enumerate("ab")}
    labels = torch.full((25,), -1)
    method = ODIN(network, temperature=temperatures, epsilon=epsilons)
    assert method.needs_val_ood
    with pytest.raises(NotFittedError):
        method.predict(batch[0])
    halves = list(zip(batch[0].split(15), batch[1].split(15), strict=True))
    method.tune(halves, {name: [(z, labels)] for name, z in sets.items()})
    means = {}
    for t in temperatures:
        for e in epsilons:
            fixed = ODIN(network, temperature=t, epsilon=e)
            with torch.no_grad():  # in float64, which predictions are not
                known, *unknown = (fixed._predict(z).scores["ODIN"] for z in (batch[0], *sets.values()))
            truth = [1] * len(known) + [0] * 25
            means[t, e] = sum(roc_auc_score(truth, torch.cat([known, z]).numpy()) for z in unknown) / 2
    best = max(means, key=lambda setting: means[setting])
    assert (method.temperature.item(), method.epsilon.item()) == best
    again = ODIN(network, temperature=temperatures, epsilon=epsilons)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.get_ood_scores(batch[0])["ODIN"], method.get_ood_scores(batch[0])["ODIN"])


def test_a_few_inputs_of_each_set_are_enough() -> None:
    batches = [(torch.arange(4.0) + 4 * k, torch.zeros(4)) for k in range(3)]
    assert collect(lambda x: x, batches, max_items=6).tolist() == [0, 1, 2, 3, 4, 5]
    scores = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), {"a": torch.tensor([[0.0, 0.0]]), "b": torch.tensor([[1.5, 1.0]])}
    assert mean_auroc(*scores).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0.0}, {"epsilon": -0.1}, {"temperature": []}, {"epsilon": [0.1, -1.0]}]
)
def test_senseless_arguments(network: FC, arguments: dict) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and epsilon at least 0"):
        ODIN(network, **arguments)


def test_choosing_needs_outliers_to_choose_on() -> None:
    (fixed,) = compose_points("dataset=digits", "model=img_odin", "fixed.model_config.epsilon=null")
    with pytest.raises(ConfigError, match=r"fixed\.val_ood_datasets: ODIN chooses settings"):
        build_method(fixed)
    (fixed,) = compose_points(
        "dataset=wine",
        "model=fc_odin",
        "fixed.model_config.epsilon=[0.0,0.1]",
        "fixed.val_ood_datasets=[constant]",
        "fixed.test_ood_datasets=[]",
        "fixed.checkpoint_config.monitor=val/ood",
    )
    with pytest.raises(ConfigError, match=r"fixed\.checkpoint_config\.monitor: ODIN is fitted after training"):
        build_method(fixed)


def test_from_a_finished_run_without_training(
    trained: Callable[[str], Trained], small_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The weights are the run's, both are chosen on the validation outliers, and loading brings the choice back."""
    baseline = trained("fc_ce_baseline").run
    overrides = quick_overrides("fc_odin", small_data("fc"), tmp_path)
    (results,) = run_points(
        compose_points(
            *overrides,
            f"fixed.init_from={baseline.path}",
            "fixed.trainer_config.max_epochs=0",
            "fixed.val_ood_datasets=[uniform_noise]",
            "fixed.model_config.temperature=[1.0,100.0]",
            "fixed.model_config.epsilon=null",
        )
    )
    method = checkpoints.load(Path(results["run_dir"])).method
    assert isinstance(method, ODIN) and method.temperature.item() in (1.0, 100.0)
    assert 0 <= method.epsilon.item() <= 0.004
    for name, weight in baseline.method.network.state_dict().items():
        assert torch.equal(method.network.state_dict()[name], weight)
