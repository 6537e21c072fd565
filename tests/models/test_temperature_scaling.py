"""Temperature scaling: the fit against scipy and closed forms, unchanged classes, and scaling runs from outside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from tests.conftest import Trained, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.errors import NotFittedError
from uncertainty_est.evaluation.reading import Reading
from uncertainty_est.launch import run_points
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.mc_dropout import MCDropout
from uncertainty_est.models.odin import ODIN
from uncertainty_est.models.temperature_scaling import (
    TemperatureScaling,
    collect_logits,
    fit_temperature,
    scalable,
)
from uncertainty_est.networks.fc import FC

Batch = tuple[Tensor, Tensor]


def drawn(n: int, classes: int, spread: float, seed: int) -> Batch:
    """Logits z of normal draws, and labels drawn from softmax(z)."""
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return z, torch.multinomial(z.softmax(-1), 1, generator=generator).squeeze(1)


def nll(logits: Tensor, y: Tensor, temperature: float) -> float:
    return F.cross_entropy(logits.double() / temperature, y).item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.3, 2.5, 40.0])
@pytest.mark.parametrize(("n", "classes"), [(300, 2), (200, 10)])
def test_it_agrees_with_scipy_and_is_never_worse_than_no_scaling(n: int, classes: int, scale: float, seed: int) -> None:
    z, y = drawn(n, classes, 2.0, seed)
    logits = scale * z + 1e4  # the offset changes nothing
    got = fit_temperature(logits, y)
    assert got.dtype == torch.float64 and not got.requires_grad
    by_scipy = minimize_scalar(
        lambda t: nll(scale * z, y, float(np.exp(t))), bounds=(np.log(0.01), np.log(100)), options={"xatol": 1e-10},
        method="bounded",
    )  # fmt: skip
    assert got.item() == pytest.approx(float(np.exp(by_scipy.x)), rel=1e-6)
    assert nll(scale * z, y, got.item()) <= nll(scale * z, y, 1.0)


def test_the_slope_is_zero_at_the_temperature_of_two_classes_in_closed_form() -> None:
    """Of two logits (d, 0), a share q of the first label is fitted by ``sigma(d / T) = q``."""
    logits, y = torch.tensor([[3.0, 0.0]]).expand(10, 2), torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, y).item() == pytest.approx(3 / np.log(0.8 / 0.2), rel=1e-9)


def test_a_known_temperature_comes_back() -> None:
    z, y = drawn(20_000, 5, 2.0, 0)
    assert fit_temperature(2.5 * z, y).item() == pytest.approx(2.5, abs=0.05)
    assert fit_temperature(0.5 * z, y).item() == pytest.approx(0.5, abs=0.02)


def test_where_there_is_no_best_temperature_nothing_is_made_of_it(caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.eye(3) * 5
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(logits, torch.arange(3)).item() == 1
        assert fit_temperature(logits, torch.tensor([1, 2, 0])).item() == 100
    assert [record.message for record in caplog.records] == [
        "the split is classified without an error, which no temperature fits best; it stays 1",
        "the best temperature is above 100, which is taken",
    ]


def test_classes_stay_and_scores_are_those_of_the_scaled_logits(network: FC, batch: Batch) -> None:
    method = TemperatureScaling(network)
    with pytest.raises(NotFittedError):
        method.predict(batch[0])
    halves = list(zip(batch[0].split(15), batch[1].split(15), strict=True))
    method.fit_posthoc(halves)
    logits = network(batch[0]).detach()
    t = fit_temperature(logits, batch[1])
    assert method.scaling.temperature == t != 1
    prediction = method.half().float().predict(batch[0])  # the temperature keeps its digits
    plain = CEBaseline(network)
    expected = plain.predict_from({"logits": (network(batch[0]).detach().double() / t).float()})
    assert torch.equal(prediction.probs, expected.probs)
    assert torch.equal(prediction.probs.argmax(-1), plain.classify(batch[0]).argmax(-1))
    assert list(prediction.scores) == ["max p(y|x)", "p(x)", "Entropy", "Max logit"]
    for name, score in expected.scores.items():
        assert torch.equal(prediction.scores[name], score)


def test_what_is_a_softmax_of_logits_can_be_scaled_from_outside(network: FC, batch: Batch) -> None:
    x = batch[0]
    assert scalable(CEBaseline(network), x) and scalable(ODIN(network), x)
    fitted = TemperatureScaling(network)
    fitted.fit_posthoc([batch])
    dropping = MCDropout(FC(data_shape=[3], num_classes=4, hidden_dims=[16], dropout=0.5))
    assert not scalable(fitted, x) and not scalable(dropping, x) and not scalable(network, x)
    method = ODIN(network, epsilon=0.1)
    logits, y = collect_logits(method, [(x[:30], batch[1][:30]), (x[30:], batch[1][30:])])
    torch.testing.assert_close(logits, network(x))
    assert torch.equal(y, batch[1])
    plain, scaled = Reading(method, torch.tensor(2.0, dtype=torch.float64)).predict(x)
    expected = method.predict(x)
    assert torch.equal(plain.probs, expected.probs)
    torch.testing.assert_close(scaled.probs, (network(x).detach() / 2).softmax(-1))
    assert torch.equal(scaled.scores["ODIN"], expected.scores["ODIN"])
    torch.testing.assert_close(scaled.scores["Max logit"], expected.scores["Max logit"] / 2)


def test_from_a_finished_run_without_training(
    trained: Callable[[str], Trained], small_data: Callable[[str], Path], tmp_path: Path
) -> None:
    baseline = trained("fc_ce_baseline")
    overrides = quick_overrides("fc_temperature_scaling", small_data("fc"), tmp_path)
    start = [f"fixed.init_from={baseline.run.path}", "fixed.trainer_config.max_epochs=0"]
    (results,) = run_points(compose_points(*overrides, *start))
    method = checkpoints.load(Path(results["run_dir"])).method
    assert isinstance(method, TemperatureScaling)
    for name, weight in baseline.run.method.network.state_dict().items():
        assert torch.equal(method.network.state_dict()[name], weight)
    assert results["classification"]["Accuracy"] == baseline.results["classification"]["Accuracy"]
