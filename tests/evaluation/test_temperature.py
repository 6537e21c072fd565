"""Temperature scaling of finished runs: rows against independent code, and files that stay as they are."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, roc_auc_score

from tests.conftest import CONFIGS, Trained
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.scoring import Scored, ScoredRun
from uncertainty_est.evaluation.temperature import scaled_run
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.temperature_scaling import TemperatureScaling
from uncertainty_est.request import Request


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@torch.no_grad()
def lean_to_the_first_class(method: CEBaseline, data: OODDataModule) -> None:
    """Half of the validation samples of other classes become errors: without any there would be no temperature."""
    x, y = (torch.cat(parts) for parts in zip(*data.plain_loader("val"), strict=True))
    logits = method.network(x)[y != 0]
    gaps = logits.gather(1, y[y != 0].unsqueeze(1)).squeeze(1) - logits[:, 0]
    method.network.head.bias[0] += gaps.median()


def test_rows_after_scaling_are_those_of_scaled_logits(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained("fc_ce_baseline").run.path, runs / "plain")
    shutil.copytree(trained("fc_temperature_scaling").run.path, runs / "scaled")
    baseline = checkpoints.load(runs / "plain")
    method, data = baseline.method, build_data(baseline.fixed)
    assert isinstance(method, CEBaseline)
    data.setup("test")
    lean_to_the_first_class(method, data)
    checkpoints.save_weights(runs / "plain", method)
    tempered = checkpoints.load(runs / "scaled").method
    assert isinstance(tempered, TemperatureScaling)
    tempered.scaling.temperature.fill_(2.0)
    checkpoints.save_weights(runs / "scaled", tempered)
    before = hashes(runs)
    report = evaluate(
        Request(
            tmp_path / "out",
            CONFIGS / "source",
            checkpoint_dir=runs,
            eval_classification=True,
            temperature_scaling=True,
            no_plots=True,
        )
    )
    assert report.failed == [] and hashes(runs) == before
    # What is scaled already has no further rows.
    clf, ood = report.clf[report.clf["Run"] == "plain"], report.ood[report.ood["Run"] == "plain"]
    own = report.clf[report.clf["Run"] == "scaled"]
    assert not own["Metric"].str.startswith("t_").any() and "Temperature" not in set(own["Metric"])

    with torch.no_grad():
        logits, y = (
            {
                split: torch.cat([pair[i] for pair in batches]).double().numpy()
                for split, batches in {
                    "val": [(method.network(x), y) for x, y in data.plain_loader("val")],
                    "test": [(method.network(x), y) for x, y in data.id_test_loader()],
                }.items()
            }
            for i in (0, 1)
        )
        outliers = torch.cat([method.network(x) for x, _ in data.ood_loader("between", "test")]).double().numpy()
    labels = y["val"].astype(int)
    fit = minimize_scalar(
        lambda t: -log_softmax(logits["val"] / np.exp(t), axis=1)[np.arange(len(labels)), labels].mean(),
        bounds=(np.log(0.01), np.log(100)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    t = float(np.exp(fit.x))
    value = clf.set_index("Metric")["Value"]
    assert value["Temperature"] == pytest.approx(t, rel=1e-5)
    probs = softmax(logits["test"] / t, axis=1)
    assert value["t_NLL"] == pytest.approx(log_loss(y["test"], probs), rel=1e-4)
    assert value["t_Accuracy"] == value["Accuracy"] and value["t_ECE"] != value["ECE"]
    assert {f"t_{name}" for name in own["Metric"]} <= set(clf["Metric"])

    plain, scaled = (ood[ood["Score"].str.startswith("t_") == is_scaled] for is_scaled in (False, True))
    assert set(scaled["Score"]) == {f"t_{score}" for score in plain["Score"]}
    assert len(scaled) == len(plain) and not scaled["Headline"].any()
    rows = scaled[(scaled["Score"] == "t_Entropy") & (scaled["OOD dataset"] == "between")]
    entropy = [(p * np.log(p)).sum(1) for p in (probs, softmax(outliers / t, axis=1))]
    truth = np.r_[np.ones(len(probs)), np.zeros(len(outliers))]
    auroc = rows.set_index("Metric")["Value"]["AUROC"]
    assert auroc == pytest.approx(100 * roc_auc_score(truth, np.concatenate(entropy)), abs=0.05)
    with np.load(tmp_path / "out" / "scores-out" / "plain.npz") as saved:
        np.testing.assert_allclose(saved["id/t_probs"], probs, atol=1e-5)
        np.testing.assert_allclose(saved["between/score:t_Max logit"], outliers.max(1) / t, rtol=1e-4, atol=1e-5)


def test_scaled_answers_make_a_run_of_their_own() -> None:
    def scored(energy: float, scaled: Scored | None = None) -> Scored:
        return Scored(np.zeros(3, int), np.full((3, 2), 0.5), {"p(x)": np.full(3, energy)}, scaled=scaled)

    tempered = scaled_run(ScoredRun(scored(1.0, scored(2.0)), {"far": scored(3.0, scored(4.0))}, temperature=0.5))
    assert tempered is not None and tempered.temperature == 0.5
    assert list(tempered.id_data.scores) == ["t_p(x)"] and tempered.ood["far"].scores["t_p(x)"].tolist() == [4, 4, 4]
    assert scaled_run(ScoredRun(scored(1.0), {"far": scored(3.0)})) is None


def test_tables_without_the_option_are_as_before(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    folder = trained("fc_ce_baseline").run.path
    report = evaluate(
        Request(tmp_path, CONFIGS / "source", checkpoint=[folder], eval_classification=True, no_plots=True)
    )
    for table, column in ((report.clf, "Metric"), (report.ood, "Score")):
        assert isinstance(table, pd.DataFrame) and not table[column].str.startswith("t_").any()
