"""Certificates and the attack through ``evaluate``: whole runs, the tables, and what a user is told."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate as evaluate_script
from tests.conftest import CONFIGS, Trained, compose_points
from uncertainty_est.building import build_data
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluate import evaluate, summary
from uncertainty_est.evaluation.adversarial import AttackOptions, make_balls
from uncertainty_est.evaluation.report import Report
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.request import Request

Get = Callable[[str], Trained]
QUICK = {"attack": True, "attack_points": 40, "attack_steps": 15, "attack_restarts": 2, "no_plots": True}


@pytest.fixture(scope="module")
def runs(trained: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier and, behind it in the alphabet, a CCU run on the same data."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(trained("fc_ce_baseline").run.path, root / "ce")
    shutil.copytree(trained("fc_ccu").run.path, root / "certified")
    return root


def report_of(runs: Path, out: Path, **options: object) -> Report:
    return evaluate(Request(out, CONFIGS / "source", checkpoint_dir=runs, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def out(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    report = report_of(runs, folder, certify=True, certify_points=50, certify_radius=[2.0, 0.5, 2.0], **QUICK)
    assert report.failed == []
    return folder


def test_every_run_with_classes_is_attacked_in_the_same_balls(out: Path) -> None:
    table = pd.read_csv(out / "attack-out.csv")
    assert list(table.columns[:7]) == ["Model", "Model Type", "ID dataset", "OOD dataset", "Score", "Metric", "Value"]
    assert set(table["Balls"]) == {"certified"}
    assert set(table["n_ood"]) == {40}
    value = table.fillna("").set_index(["Run", "OOD dataset", "Metric"])["Value"].sort_index()
    for run in ("ce", "certified"):
        before, after = value[run, "uniform noise"], value[run, "uniform noise, attacked"]
        for metric in ("MMC", "Median confidence", "Success rate", "Confident share"):
            assert after[metric] >= before[metric] - 1e-9
        assert after["AUROC"] <= before["AUROC"] + 1e-9
    share = value["ce", "uniform noise, attacked", "Balls with a radius"]
    assert 0 < share < 100
    assert value["ce", "uniform noise, attacked", "MMC"] > value["ce", "uniform noise", "MMC"] + 0.1
    assert value["certified", "uniform noise, attacked", "Largest excess over the bound"] <= 0
    assert "Largest excess over the bound" not in value["ce", "uniform noise, attacked"]
    clf = report_accuracy(out)
    for run in ("ce", "certified"):
        (error,) = table[(table["Run"] == run) & (table["Metric"] == "Test error")]["Value"]
        assert error == pytest.approx(100 - clf[run])


def report_accuracy(out: Path) -> dict[str, float]:
    results = pd.read_json(out / "results-out.json")
    return {entry["runs"][0]: mean["Accuracy"] for entry, mean in zip(results["info"], results["mean"], strict=True)}


def test_only_runs_with_certificates_are_certified(out: Path) -> None:
    table = pd.read_csv(out / "cert-out.csv")
    assert set(table["Run"]) == {"certified"}
    assert set(table["OOD dataset"]) == {"uniform noise", "between"}
    assert set(table["Radius"].dropna()) == {0.5, 2.0}
    value = table.set_index(["OOD dataset", "Metric", "Radius"])["Value"].sort_index()
    for name in ("uniform noise", "between"):
        assert value[name, "Certified confidence", 0.5] < value[name, "Certified confidence", 2.0]
        assert value[name, "Guaranteed AUROC", 0.5] > value[name, "Guaranteed AUROC", 2.0]


def test_the_tables_can_be_made_again_from_what_is_saved(out: Path) -> None:
    with np.load(out / "scores-out" / "certified.certified.npz") as saved:
        cert = pd.read_csv(out / "cert-out.csv")
        rows = cert[(cert["OOD dataset"] == "between") & (cert["Metric"] == "Certified confidence")]
        assert rows.set_index("Radius")["Value"][0.5] == pytest.approx(100 * saved["between/bound:0.5"].mean())
    for run in ("ce", "certified"):
        with np.load(out / "scores-out" / f"{run}.attacked.npz") as saved:
            table = pd.read_csv(out / "attack-out.csv")
            rows = table[(table["Run"] == run) & (table["Metric"] == "MMC")].set_index("OOD dataset")["Value"]
            assert rows["uniform noise, attacked"] == pytest.approx(100 * saved["confidence:attacked"].mean())
            assert saved["attacked"].shape == saved["seeds"].shape == (40, 2)
            assert (saved["radius"] > 0).any()
    assert not (out / "scores-out" / "ce.certified.npz").exists()


def test_the_ood_table_has_mean_confidence_and_the_confident_share(out: Path, trained: Get) -> None:
    ood = pd.read_csv(out / "ood-out.csv")
    rows = ood[(ood["Run"] == "ce") & (ood["Score"] == "max p(y|x)")].set_index("Metric")
    data = build_data(trained("fc_ce_baseline").fixed)
    data.setup("test")
    method = trained("fc_ce_baseline").run.method
    probs = torch.cat([method.predict(x).probs for x, _ in data.ood_loader("between", "test")])
    confidence = probs.amax(-1).double()
    assert rows["Value"]["MMC"] == pytest.approx(100 * float(confidence.mean()))
    assert rows["Value"]["Confident share"] == pytest.approx(100 * float((confidence > 0.95).double().mean()))
    assert not rows["Headline"][["MMC", "Confident share"]].any()


def test_without_balls_the_user_is_told_how_to_get_some(runs: Path, tmp_path: Path) -> None:
    report = report_of(runs / "ce", tmp_path, **QUICK)
    assert len(report.ood)
    (row,) = report.failed
    assert "no run that is evaluated here gives any on 'gaussian2d'; evaluate a run of CCU" in row["Error"]
    named = report_of(runs / "ce", tmp_path, attack_balls=runs / "certified", **QUICK)
    assert named.failed == []
    assert set(named.extras["attack"][0]["Balls"]) == {"certified"}
    wrong = report_of(runs / "ce", tmp_path, attack_balls=runs / "ce", **QUICK)
    assert f"'{runs / 'ce'}' gives none on 'gaussian2d'" in wrong.failed[0]["Error"]
    with pytest.raises(ConfigError, match="no finished run"):
        report_of(runs / "ce", tmp_path, attack_balls=runs, **QUICK)


def test_euclidean_balls_need_no_certificates_and_seeds_may_be_a_data_set(runs: Path, tmp_path: Path) -> None:
    report = report_of(runs, tmp_path, attack_radius=0.5, attack_seeds="gaussian_noise", **QUICK)
    assert report.failed == []
    table = report.extra("attack")
    assert set(table["Balls"]) == {"Euclidean"}
    assert set(table["OOD dataset"]) == {"gaussian_noise", "gaussian_noise, attacked", ""}
    assert "Largest excess over the bound" not in set(table["Metric"])
    assert (table[table["Metric"] == "Balls with a radius"]["Value"] == 100).all()
    assert set(report.ood["OOD dataset"]) == {"between"}


def test_a_method_without_gradients_is_listed_as_a_failure(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = CEBaseline.outputs
    monkeypatch.setattr(CEBaseline, "outputs", lambda self, x: {k: v.detach() for k, v in outputs(self, x).items()})
    report = report_of(runs / "ce", tmp_path, attack_radius=0.5, **QUICK)
    assert "probabilities of CEBaseline pass no gradient back" in report.failed[0]["Error"]
    assert len(report.ood)
    assert pd.read_csv(tmp_path / "failed-out.csv")["Run"].tolist() == ["ce"]


def test_a_method_without_classes_is_left_out(trained: Get, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "uncertainty_est"):
        report = report_of(trained("fc_autoencoder").run.path, tmp_path, certify=True, attack_radius=0.5, **QUICK)
    assert report.failed == []
    assert len(report.extra("attack")) == len(report.extra("cert")) == 0
    assert "has no class probabilities to attack" in caplog.text
    assert "has no certificates" in caplog.text
    assert "attack" not in summary(report).split("table ")[0]


def test_the_summary_shows_certificates_and_attacks(runs: Path, tmp_path: Path) -> None:
    text = summary(report_of(runs, tmp_path, certify=True, certify_points=10, **QUICK))
    assert "Certified balls: no class gets more than 1.1 / C" in text
    row = next(line for line in text.splitlines() if "uniform noise, attacked" in line)
    assert len(row.split()) >= 3 + 3


@pytest.mark.parametrize("words", [["--attack-radius", "-1"], ["--attack-radius", "1", "--attack-balls", "run"]])
def test_options_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate_script.parser().parse_args(["--output-folder", "out", "--attack", *words])
    assert "--attack-radius" in capsys.readouterr().err


def digits(*overrides: str) -> OODDataModule:
    (fixed,) = compose_points("dataset=digits", "model=img_ce_baseline", *overrides)
    data = build_data(fixed)
    data.setup("test")
    return data


def test_balls_of_one_input_space_reach_the_other(trained: Get) -> None:
    ours, theirs = digits(), digits("fixed.transform.mean=0.25", "fixed.transform.std=2.0")
    options = AttackOptions(radius=1.0, points=5)
    balls = make_balls("run", trained("img_ce_baseline").run, ours, options)
    x = balls.region.seeds
    assert balls.into(ours)(x) is x
    levels = ours.transform.invert(x).round().to(torch.uint8)
    before = x.clone()
    x.requires_grad_()
    there = balls.into(theirs)(x)
    torch.testing.assert_close(there, theirs.transform(levels))
    (gradient,) = torch.autograd.grad(there.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.5 / 2.0))
    assert torch.equal(x.detach(), before)


def test_balls_of_one_scaling_of_a_table_reach_another(trained: Get) -> None:
    modules = []
    for scaling in ("standard", "asinh"):
        (fixed,) = compose_points("dataset=wine", "model=fc_ce_baseline", f"fixed.transform.scaling={scaling}")
        modules.append(build_data(fixed))
        modules[-1].setup("test")
    ours, theirs = modules
    balls = make_balls("run", trained("fc_ce_baseline").run, ours, AttackOptions(radius=1.0, points=5))
    raw = ours.id_source.split("test").x
    torch.testing.assert_close(balls.into(theirs)(ours.transform(raw)), theirs.transform(raw), atol=1e-4, rtol=1e-4)
