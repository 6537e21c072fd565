"""Fine-tuning with outliers: its losses, its scores, its learning rate, and where it starts from."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.conftest import Trained, compose_points, quick_overrides
from uncertainty_est.errors import ConfigError
from uncertainty_est.launch import run_points
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.energy_finetuning import EnergyFinetuning
from uncertainty_est.networks.fc import FC

Batch = tuple[Tensor, Tensor]
Get = Callable[[str], Trained]


@pytest.fixture
def outliers() -> Batch:
    return 4 * torch.randn(30, 3, generator=torch.Generator().manual_seed(2)), torch.full((30,), -1)


class Fixed(nn.Module):
    """Puts out its inputs as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_golden_losses() -> None:
    """One logit and its margin: log-sum-exps of 20 and 10 cost 0.1 (9 + 25); logits (1, 2, 3) cost 0.70…"""
    known, unknown = torch.tensor([[20.0, -1e9]]), torch.tensor([[10.0, -1e9]])
    batch = {"id": (known, torch.tensor([0])), "ood": (unknown, torch.tensor([-1]))}
    parts = EnergyFinetuning(Fixed()).loss(batch)  # type: ignore[arg-type]
    assert list(parts) == ["ce", "energy_id", "energy_ood"]
    assert (parts["energy_id"] + parts["energy_ood"]).item() == pytest.approx(3.4)
    batch = {"id": (torch.zeros(1, 3), torch.tensor([0])), "ood": (torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([-1]))}
    parts = EnergyFinetuning(Fixed(), score="OE").loss(batch)  # type: ignore[arg-type]
    assert parts["oe"].item() == pytest.approx(0.7038029822221903)
    assert parts["ce"].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("score", ["energy", "OE"])
def test_the_class_loss_is_that_of_the_data_alone(network: FC, batch: Batch, outliers: Batch, score: str) -> None:
    parts = EnergyFinetuning(network, score=score).loss({"id": batch, "ood": outliers})
    torch.testing.assert_close(parts["ce"], nn.functional.cross_entropy(network(batch[0]), batch[1]))


def test_descent_separates_the_energies(network: FC, batch: Batch, outliers: Batch) -> None:
    method = EnergyFinetuning(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def gap() -> Tensor:
        return method.get_ood_scores(batch[0])["p(x)"].mean() - method.get_ood_scores(outliers[0])["p(x)"].mean()

    before = gap()
    for _ in range(50):
        optimizer.zero_grad()
        torch.stack(list(method.loss({"id": batch, "ood": outliers}).values())).sum().backward()
        optimizer.step()
    assert gap() > before + 1


@pytest.mark.parametrize("score", ["energy", "OE"])
def test_the_order_of_the_samples_does_not_matter(network: FC, batch: Batch, outliers: Batch, score: str) -> None:
    method = EnergyFinetuning(network, score=score)
    parts = method.loss({"id": batch, "ood": outliers})
    turned = method.loss({"id": (batch[0].flip(0), batch[1].flip(0)), "ood": (outliers[0].flip(0), outliers[1])})
    for name, part in parts.items():
        torch.testing.assert_close(turned[name], part)


def test_scores_are_the_classifiers_with_the_trained_one_first(network: FC, batch: Batch) -> None:
    plain = CEBaseline(network).get_ood_scores(batch[0])
    energy = EnergyFinetuning(network).get_ood_scores(batch[0])
    exposed = EnergyFinetuning(network, score="OE").get_ood_scores(batch[0])
    assert list(energy) == ["p(x)", "max p(y|x)", "Entropy", "Max logit"]
    assert list(exposed) == ["max p(y|x)", "p(x)", "Entropy", "Max logit", "CE to uniform"]
    for name, score in plain.items():
        assert torch.equal(energy[name], score)
        assert torch.equal(exposed[name], score)
    logits = network(batch[0])
    expected = -(torch.full((4,), 0.25) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(exposed["CE to uniform"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "oe"}, "score must be one of 'energy', 'OE', got 'oe'"),
        ({"margin_in": -5.0, "margin_out": -23.0}, "margin_in must not exceed margin_out"),
        ({"energy_weight": -1.0}, "energy_weight, oe_weight and final_lr must be at least 0"),
    ],
)
def test_senseless_arguments(network: FC, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnergyFinetuning(network, **arguments)


@pytest.fixture
def start(small_data: Callable[[str], Path], tmp_path: Path) -> Callable[..., dict]:
    def run(*overrides: str) -> dict:
        composed = quick_overrides("fc_energy_finetuning", small_data("fc"), tmp_path)
        (results,) = run_points(compose_points(*composed, *overrides))
        return results

    return run


def test_it_starts_from_the_weights_of_a_run(trained: Get, start: Callable[..., dict]) -> None:
    folder = trained("fc_ce_baseline").run.path
    results = start(f"fixed.init_from={folder}", "fixed.trainer_config.max_epochs=0")
    before, after = (torch.load(Path(f) / "checkpoint.pt")["state_dict"] for f in (folder, results["run_dir"]))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    saved = yaml.safe_load((Path(results["run_dir"]) / "config.yaml").read_text())
    assert saved["init_from"] == str(folder)
    assert results["classification"]["Accuracy"] == trained("fc_ce_baseline").results["classification"]["Accuracy"]


def test_training_from_scratch_is_possible_and_said(
    trained: Get, start: Callable[..., dict], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "uncertainty_est"):
        start("fixed.trainer_config.max_epochs=1")
    assert "trains from scratch; fixed.init_from=" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "uncertainty_est"):
        start("fixed.trainer_config.max_epochs=1", f"fixed.init_from={trained('fc_ce_baseline').run.path}")
    assert "from scratch" not in caplog.text


def test_the_learning_rate_falls_step_by_step(start: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def on_before_zero_grad(self: EnergyFinetuning, optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(EnergyFinetuning, "on_before_zero_grad", on_before_zero_grad)
    results = start("fixed.trainer_config.max_epochs=3", "fixed.earlystop_config=null")
    steps = len(rates)
    with (Path(results["run_dir"]) / "logs" / "metrics.csv").open() as file:
        assert steps == 1 + max(int(row["step"]) for row in csv.DictReader(file))
    expected = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * s / steps)) / 2 for s in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_scheduler_of_ones_own_and_training_without_an_end(network: FC, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimizer(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)  # type: ignore[arg-type]

    def scheduler(opt: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(opt, 1)

    own = EnergyFinetuning(network, optimizer=optimizer, scheduler=scheduler).configure_optimizers()
    assert isinstance(own["lr_scheduler"], torch.optim.lr_scheduler.StepLR)

    class Endless:
        estimated_stepping_batches = math.inf

    method = EnergyFinetuning(network, optimizer=optimizer)
    monkeypatch.setattr(EnergyFinetuning, "trainer", Endless())
    with pytest.raises(ConfigError, match=r"fixed\.trainer_config\.max_epochs"):
        method.configure_optimizers()


@pytest.mark.parametrize(
    ("model", "least"), [("fc_energy_finetuning", 70), ("fc_energy_finetuning_oe", 95)], ids=["energy", "OE"]
)
def test_a_classifier_learns_what_it_was_certain_of(
    trained: Get, start: Callable[..., dict], model: str, least: float
) -> None:
    """With uniform noise around the data as outliers, it knows the ring far outside, of which it was most certain."""
    folder = trained("fc_ce_baseline").run.path
    more = (f"model={model}", f"fixed.init_from={folder}", "fixed.test_ood_datasets=[anomalous_gaussian2d]")
    before, after = (start(*more, f"fixed.trainer_config.max_epochs={epochs}") for epochs in (0, 25))
    (was,), (now,) = (results["ood"].values() for results in (before, after))
    headline = next(iter(now))
    assert was[headline]["AUROC"] < 50
    assert now[headline]["AUROC"] > least
    assert after["classification"]["Accuracy"] > 99
