"""Post-hoc scores of finished runs: rows, one forward pass, and runs that stay as they are."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests.conftest import CONFIGS, Trained, compose_points
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.config import build
from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.reading import Reading, std_of
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.mc_dropout import MCDropout
from uncertainty_est.models.odin import ODIN
from uncertainty_est.networks.fc import FC
from uncertainty_est.posthoc.base import scores_named
from uncertainty_est.request import Request
from uncertainty_est.run_folder import SPLITS_FILE

Get = Callable[[str], Trained]


def request(out: Path, *folders: Path, **options: object) -> Request:
    return Request(out, CONFIGS / "source", checkpoint=folders, no_plots=True, **options)  # type: ignore[arg-type]


def digest(state: dict[str, Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest() for name, value in state.items()}


def auroc(report: pd.DataFrame, score: str) -> float:
    rows = report[(report["Score"] == score) & (report["Metric"] == "AUROC") & (report["OOD dataset"] == "between")]
    return float(rows["Value"].iloc[0])


def test_all_scores_from_one_pass_over_runs_that_stay_as_they_are(
    trained: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained("fc_ce_baseline").run.path, tmp_path / "run")
    loaded: list[checkpoints.Run] = []
    before: list[dict[str, str]] = []
    forwarded: list[int] = []
    load = checkpoints.load

    def counting(path: Path) -> checkpoints.Run:
        run = load(path)
        assert isinstance(run.method, CEBaseline)
        loaded.append(run)
        before.append(digest(run.method.state_dict()))
        first = next(module for module in run.method.network.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda module, args, output: forwarded.append(len(output)))
        return run

    monkeypatch.setattr(checkpoints, "load", counting)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # All but ODIN, which takes passes of its own.
    names = ["msp", "max_logit", "energy", "entropy", "gen", "gradnorm", "react", "ash", "scale", "dice", "she", "vim"]
    names += ["mahalanobis", "rmd", "ddu:min_jitter=1e-6", "knn:k=5", "knn:k=9"]
    sets = ["between", "anomalous_gaussian2d", "gaussian_noise", "two_moons_far"]
    report = evaluate(request(tmp_path / "out", folder, scores=names, ood_dataset=sets, temperature_scaling=True))
    assert report.failed == []

    labels = [score.label for score in scores_named(names)]
    assert "kNN (k=5)" in labels and "DDU density (min_jitter=1e-6)" in labels
    plain = report.ood[~report.ood["Score"].str.startswith("t_")]
    counts = plain[plain["Metric"] == "AUROC"].groupby("Score").size()
    assert set(labels) < set(counts.index) and (counts == len(sets)).all()
    assert set(plain.loc[plain["Headline"], "Score"]) == {"max p(y|x)"}
    for ours, own in {
        "MSP": "max p(y|x)",
        "Energy": "p(x)",
        "Softmax entropy": "Entropy",
        "MaxLogit": "Max logit",
    }.items():
        assert auroc(report.ood, ours) == auroc(report.ood, own)

    rows = plain.drop_duplicates("OOD dataset")
    train, val = (np.load(folder / SPLITS_FILE)[split] for split in ("train", "val"))
    needed = rows["n_ood"].sum() + rows["n_id"].iloc[0]
    # The temperature reads the validation split, and its first batch twice more to see whether it may.
    of_temperature = len(val) + 2 * min(len(val), loaded[0].fixed["eval_batch_size"])
    assert (sum(forwarded) - len(train) - of_temperature) / needed == 1.0

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert [digest(run.method.state_dict()) for run in loaded] == before
    with np.load(tmp_path / "out" / "scores-out" / "run.npz") as saved:
        known, unknown = saved["id/score:Relative Mahalanobis"], saved["between/score:Relative Mahalanobis"]
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    expected = 100 * roc_auc_score(truth, np.r_[known, unknown])
    assert auroc(report.ood, "Relative Mahalanobis") == pytest.approx(expected)


def test_a_run_without_a_classifier_keeps_its_rows_and_is_listed(trained: Get, tmp_path: Path) -> None:
    report = evaluate(request(tmp_path, trained("fc_vae").run.path, scores=["msp"]))
    (row,) = report.failed
    assert "VAE is no classifier with features and logits" in row["Error"]
    assert auroc(report.ood, "ELBO") > 0


def test_a_score_that_cannot_be_fitted_does_not_hinder_the_others(trained: Get, tmp_path: Path) -> None:
    report = evaluate(request(tmp_path, trained("fc_ce_baseline").run.path, scores=["knn:k=1000000", "gen"]))
    (row,) = report.failed
    assert "kNN (k=1000000) is left out" in row["Error"] and "smaller" in row["Error"]
    assert auroc(report.ood, "GEN") > 0


def test_an_unknown_score_is_told_before_anything_is_scored(trained: Get, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mahalanobis'"):
        evaluate(request(tmp_path, trained("fc_ce_baseline").run.path, scores=["mahalonobis"]))
    assert not list(tmp_path.glob("*.csv"))


def test_odin_of_any_classifier_is_the_method_odin() -> None:
    torch.manual_seed(0)
    network = FC(data_shape=[3], num_classes=4, hidden_dims=[16])
    x = torch.randn(20, 3)
    reading = Reading(
        CEBaseline(network), scores=scores_named(["odin:epsilon=0.05:temperature=10"]), std=torch.tensor(0.5)
    )
    (prediction,) = reading.predict(x)
    expected = ODIN(network, temperature=10.0, epsilon=0.05, std=0.5).predict(x).scores["ODIN"]
    assert torch.equal(prediction.scores["ODIN, post-hoc (epsilon=0.05, temperature=10)"], expected)
    assert next(iter(prediction.scores)) == "max p(y|x)"


def test_a_method_of_many_passes_answers_by_them_and_scores_by_its_network() -> None:
    torch.manual_seed(0)
    method = MCDropout(FC(data_shape=[3], num_classes=4, hidden_dims=[16], dropout=0.5))
    x = torch.randn(20, 3)
    (prediction,) = Reading(method, scores=scores_named(["msp"])).predict(x)
    expected = method.predict(x)
    assert prediction.probs is not None and torch.equal(prediction.probs, expected.probs)  # type: ignore[arg-type]
    of_network = method.eval().network(x).detach().softmax(-1).amax(-1)
    torch.testing.assert_close(prediction.scores["MSP"], of_network)
    assert list(prediction.scores) == [*expected.scores, "MSP"]


@pytest.mark.parametrize("model", ["fc_mcmc_supervised", "fc_edl", "fc_vera_priornet"])
def test_any_classifier_is_read_from_the_pass_of_its_own_answers(model: str) -> None:
    torch.manual_seed(0)
    (fixed,) = compose_points("dataset=gaussian2d", f"model={model}")
    method = build(fixed["model_config"]).eval()
    x = torch.randn(20, 2)
    expected, logits = method.predict(x), method.network(x).detach()
    passes: list[int] = []
    method.network.head.register_forward_hook(lambda head, inputs, output: passes.append(len(output)))
    (prediction,) = Reading(method, scores=scores_named(["msp", "gradnorm"])).predict(x)
    assert passes == [20]
    torch.testing.assert_close(prediction.scores["MSP"], logits.softmax(-1).amax(-1))
    assert list(prediction.scores) == [*expected.scores, "MSP", "GradNorm"]
    for name, score in expected.scores.items():
        assert torch.equal(prediction.scores[name], score), name


@pytest.mark.parametrize("model", ["fc_postnet", "fc_mcmc", "fc_deep_ensemble", "fc_vae"])
def test_a_method_without_class_logits_of_one_network_is_no_classifier(model: str) -> None:
    (fixed,) = compose_points("dataset=gaussian2d", f"model={model}")
    assert build(fixed["model_config"]).classifier is None


def test_steps_are_in_pixels_of_images_and_in_units_of_tables() -> None:
    for dataset, expected in (("digits", 0.5), ("gaussian2d", 1.0)):
        (fixed,) = compose_points(f"dataset={dataset}", f"model={'img' if dataset == 'digits' else 'fc'}_ce_baseline")
        assert std_of(build_data(fixed)).flatten().tolist() == [expected]
