"""Ensembles of scored runs: equal to the deep ensemble of the same members, without a pass of their own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.conftest import CONFIGS, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.errors import DataError
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.ensemble import Member, combine, group_members, names_of
from uncertainty_est.evaluation.report import Report
from uncertainty_est.evaluation.scoring import Scored, ScoredRun, save_scores
from uncertainty_est.evaluation.tables import RunInfo
from uncertainty_est.request import Request
from uncertainty_est.run import run

SCORES = ["MI", "Entropy", "Expected entropy", "Variance", "max p(y|x)"]


def train(model: str, small_data: Callable[[str], Path], out: Path, *more: str) -> Path:
    quick = [
        "fixed.trainer_config.max_epochs=2",
        "fixed.test_ood_datasets=[between,anomalous_gaussian2d]",
        "logger=none",
    ]
    (fixed,) = compose_points(*quick_overrides(model, small_data("fc"), out), *quick, *more)
    return Path(run(**fixed)["run_dir"])


@pytest.fixture(scope="module")
def runs(small_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classifiers that differ in seed, a repetition of the first, and the deep ensemble of the three."""
    root = tmp_path_factory.mktemp("runs")
    members = [train("fc_ce_baseline", small_data, root, f"fixed.seed={seed}") for seed in (1, 2, 3)]
    shutil.copytree(members[0], root / "repeated")
    train(
        "fc_deep_ensemble",
        small_data,
        root,
        "fixed.model_config.num_members=3",
        f"fixed.init_from=[{','.join(map(str, members))}]",
        "fixed.trainer_config.max_epochs=0",
    )
    return root


@pytest.fixture(scope="module")
def out(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    report = evaluation(runs, folder, eval_scod=True, config_entries=["seed", "split_seed"])
    assert report.failed == []
    return folder


def evaluation(runs: Path | None, out: Path, **options: object) -> Report:
    given = {"eval_classification": True, "ensemble": True, "no_plots": True, **options}
    return evaluate(Request(out, CONFIGS / "source", checkpoint_dir=runs, **given))  # type: ignore[arg-type]


ENSEMBLE, ASSEMBLED = "fc_ce_baseline-gaussian2d-seed1-ensemble3", "fc_deep_ensemble-gaussian2d-seed1"


def test_answers_are_those_of_the_deep_ensemble(out: Path) -> None:
    with (
        np.load(out / "scores-out" / f"{ENSEMBLE}.npz") as ours,
        np.load(out / "scores-out" / f"{ASSEMBLED}.npz") as other,
    ):
        assert list(ours) == list(other) and len(other) == 3 * (2 + len(SCORES))
        for key in other:
            np.testing.assert_allclose(ours[key], other[key], atol=1e-6, rtol=1e-6, err_msg=key)
        assert np.ptp(ours["id/score:MI"]) > 1e-4


def test_rows_are_those_of_the_deep_ensemble(out: Path) -> None:
    for file, key in (("ood", ["OOD dataset", "Score", "Metric"]), ("clf", ["Score", "Metric"])):
        table = pd.read_csv(out / f"{file}-out.csv", dtype={"Seed": str}).fillna({"Score": ""})
        ours, other = (table[table["Run"] == name].set_index(key) for name in (ENSEMBLE, ASSEMBLED))
        assert ours.index.equals(other.index) and len(ours)
        # Rounding orders ties its own way: one pair of inputs at most.
        np.testing.assert_allclose(ours["Value"], other["Value"], atol=2e-2)
        assert set(ours["Model Type"]) == {"Ensemble of CEBaseline"} and set(ours["Seed"]) == {"1+2+3"}
        assert set(ours["Config"]) == {"fc_ce_baseline"}
        assert set(ours["Model"]) == {"fc_ce_baseline-gaussian2d-ensemble3"}
        assert ours["seed"].isna().all() and (ours["split_seed"] == 1).all()


def test_it_has_figures_of_its_own(runs: Path, tmp_path: Path) -> None:
    pair = [runs / f"fc_ce_baseline-gaussian2d-seed{seed}" for seed in (1, 2)]
    evaluation(None, tmp_path, checkpoint=pair, no_plots=False)
    figures = tmp_path / "figures-out" / "fc_ce_baseline-gaussian2d-seed1-ensemble2"
    assert (figures / "hist-MI.png").is_file()
    assert (figures / "reliability.png").is_file()


def test_nothing_else_changes_and_no_input_is_forwarded_again(
    out: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = []
    load = checkpoints.load

    def counting(path: Path) -> checkpoints.Run:
        loaded = load(path)
        predict = loaded.method.predict
        monkeypatch.setattr(loaded.method, "predict", lambda x: inputs.append(len(x)) or predict(x))
        return loaded

    monkeypatch.setattr(checkpoints, "load", counting)
    plain = evaluation(runs, tmp_path / "plain", ensemble=False)
    alone = sum(inputs)
    with_ensemble = evaluation(runs, tmp_path / "ensemble")
    assert sum(inputs) == 2 * alone > 0
    for table, before in ((with_ensemble.ood, plain.ood), (with_ensemble.clf, plain.clf)):
        kept = table[table["Run"] != ENSEMBLE].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept.astype({"Seed": int}), before)


def test_members_on_other_inputs_are_listed(runs: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.copytree(runs / f"fc_ce_baseline-gaussian2d-seed{seed}", tmp_path / "runs" / f"seed{seed}")
    path = tmp_path / "runs" / "seed2" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "eval_batch_size": 64}))
    report = evaluation(tmp_path / "runs", tmp_path / "out", max_eval=1)
    assert [row["Run"] for row in report.failed] == ["seed1-ensemble2"]
    assert "seed2 and seed1 were scored on other inputs of the in-distribution test set" in report.failed[0]["Error"]
    assert set(report.ood["Run"]) == {"seed1", "seed2"}
    assert (tmp_path / "out" / "failed-out.csv").is_file()


def test_one_run_is_no_ensemble_and_one_line_says_so(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="uncertainty_est")
    shutil.copytree(runs / ASSEMBLED, tmp_path / "runs" / "a")
    report = evaluation(tmp_path / "runs", tmp_path / "out")
    assert report.failed == [] and set(report.ood["Run"]) == {"a"}
    assert [r.getMessage() for r in caplog.records if "no ensemble" in r.message] == [
        "no ensemble of a: no other run differs in its seed alone"
    ]


def member(folder: Path, seed: int, answers: ScoredRun, **changes: object) -> Member:
    path = folder / f"{seed}.npz"
    save_scores(path, answers)
    info = RunInfo("run", "CEBaseline", "m", "d", seed, f"run{seed}", {"lr": changes.get("lr", 0.1)})
    return Member(info, {"model": "m", "dataset": "d", "seed": seed, **changes}, path)


def answers(seed: int, labels: np.ndarray) -> Scored:
    probs = np.random.default_rng(seed).dirichlet(np.ones(3), len(labels)).astype(np.float32)
    return Scored(labels, probs.astype(np.float64), {"p(x)": probs[:, 0].astype(np.float64)})


def test_closed_forms_and_sets_that_do_not_fit(tmp_path: Path) -> None:
    labels, far = np.arange(20) % 3, np.zeros(9, int)
    both = [
        ScoredRun(
            answers(s, labels), {"far": answers(s + 9, far), "short": answers(s, far[s:]), f"only{s}": answers(s, far)}
        )
        for s in (1, 2)
    ]
    whole = combine([member(tmp_path, s, scored) for s, scored in zip((1, 2), both, strict=True)])
    p, q = (scored.id_data.probs for scored in both)
    assert p is not None and q is not None
    mean = (p + q) / 2
    np.testing.assert_allclose(whole.id_data.probs, mean, atol=1e-9)
    entropy = -(mean * np.log(mean)).sum(1)
    expected = -(p * np.log(p) + q * np.log(q)).sum(1) / 2
    scores = whole.id_data.scores
    assert list(scores) == SCORES
    np.testing.assert_allclose(scores["Entropy"], -entropy, atol=1e-6)
    np.testing.assert_allclose(scores["Expected entropy"], -expected, atol=1e-6)
    np.testing.assert_allclose(scores["MI"], expected - entropy, atol=1e-6)
    np.testing.assert_allclose(scores["Variance"], -((p - q) ** 2 / 2).mean(1), atol=1e-6)
    np.testing.assert_allclose(scores["max p(y|x)"], mean.max(1), atol=1e-6)
    assert list(whole.ood) == ["far"]
    assert "other inputs of 'short'" in whole.failed["short"]
    assert whole.failed["only1"] == "not all members were scored on 'only1'" and len(whole.failed) == 3


def test_other_labels_are_refused(tmp_path: Path) -> None:
    labels = np.arange(20) % 3
    members = [member(tmp_path, s, ScoredRun(answers(s, y), {})) for s, y in ((1, labels), (2, labels[::-1].copy()))]
    with pytest.raises(DataError, match="run2 and run1 were scored on other inputs of the in-distribution test set"):
        combine(members)


def test_members_differ_in_seed_alone(tmp_path: Path) -> None:
    scored = ScoredRun(answers(1, np.zeros(3, int)), {})
    one, two, again = (member(tmp_path, s, scored, output_folder=f) for s, f in ((1, "a"), (2, "b"), (1, "c")))
    other = member(tmp_path, 3, scored, lr=0.2)
    tuned = member(tmp_path, 1, scored, init_from="elsewhere")
    assert group_members([one, two, again, other, tuned]) == [[one, two, tuned], [other]]
    info, fixed = names_of([one, two])
    assert info.entries == {"lr": 0.1} and fixed["seed"] == [1, 2]
    assert np.isnan(names_of([one, other])[0].entries["lr"])
