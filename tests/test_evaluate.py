"""Evaluation of folders of runs: the tables' shape, their numbers against independent code, one pass per input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from tests.conftest import CONFIGS, Trained, compose_points
from tests.processes import Command
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.errors import DataError
from uncertainty_est.evaluate import evaluate, summary, with_sources
from uncertainty_est.request import Request

Get = Callable[[str], Trained]
ORIGINAL_COLUMNS = ["Model", "Model Type", "ID dataset", "OOD dataset", "Score", "Metric", "Value"]


@pytest.fixture(scope="module")
def runs(trained: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ only in seed, and one of another method."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(trained("fc_ddu").run.path, root / "ddu" / "one")
    shutil.copytree(trained("fc_ddu").run.path, root / "ddu" / "two")
    shutil.copytree(trained("fc_ce_baseline").run.path, root / "ce")
    path = root / "ddu" / "two" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "seed": 99}))
    return root


def request(runs: Path, out: Path, **options: object) -> Request:
    return Request(out, CONFIGS / "source", checkpoint_dir=runs, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def out(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    entries = ["model_config.optimizer.lr", "model_config.min_jitter"]
    report = evaluate(
        request(
            runs,
            folder,
            eval_classification=True,
            eval_ood_calibration=True,
            config_entries=entries,
            ood_dataset=["anomalous_gaussian2d", "between"],
            no_plots=True,
        )
    )
    assert report.failed == []
    return folder


def test_tables_have_the_originals_columns_then_the_entries_then_ours(out: Path) -> None:
    ood = pd.read_csv(out / "ood-out.csv")
    ours = ["CI low", "CI high", "Headline", "Group", "n_id", "n_ood", "Config", "Seed", "Run"]
    assert list(ood.columns) == [*ORIGINAL_COLUMNS, "lr", "min_jitter", *ours]
    assert set(ood["Run"]) == {"ce", "ddu/one", "ddu/two"}
    assert set(ood["Model Type"]) == {"CEBaseline", "DDU"}
    assert ood.loc[ood["Run"] == "ce", "min_jitter"].isna().all()
    metrics = set(ood["Metric"])
    of_confidence = {"KL from uniform", "MMC", "Confident share"}
    assert metrics == {"AUROC", "AUPR-IN", "AUPR-OUT", "FPR95", "Detection error"} | of_confidence
    assert (ood["CI low"] <= ood["Value"]).all()
    assert (ood["Value"] <= ood["CI high"]).all()
    assert not ood[["Value", "CI low", "CI high", "n_id", "n_ood"]].isna().any().any()
    clf = pd.read_csv(out / "clf-out.csv")
    assert list(clf.columns[:5]) == ["Model", "Model Type", "ID dataset", "Metric", "Value"]
    assert {"Accuracy", "ECE", "MCE", "Brier", "Brier uncertainty", "NLL", "Adaptive ECE"} <= set(clf["Metric"])


def test_numbers_agree_with_scikit_learn_on_the_methods_own_answers(out: Path, runs: Path) -> None:
    loaded = checkpoints.load(runs / "ce")
    data = build_data(loaded.fixed)
    data.setup("test")
    known = [(loaded.method.predict(x), y) for x, y in data.id_test_loader()]
    unknown = [loaded.method.predict(x) for x, _ in data.ood_loader("between", "test")]
    s_in = torch.cat([p.scores["p(x)"] for p, _ in known]).numpy()
    s_out = torch.cat([p.scores["p(x)"] for p in unknown]).numpy()
    labels = np.r_[np.ones(len(s_in)), np.zeros(len(s_out))]
    scores = np.r_[s_in, s_out]
    ood = pd.read_csv(out / "ood-out.csv")
    rows = ood[(ood["Run"] == "ce") & (ood["OOD dataset"] == "between") & (ood["Score"] == "p(x)")]
    value = rows.set_index("Metric")["Value"]
    assert value["AUROC"] == pytest.approx(100 * roc_auc_score(labels, scores))
    assert value["AUPR-IN"] == pytest.approx(100 * average_precision_score(labels, scores))
    assert value["AUPR-OUT"] == pytest.approx(100 * average_precision_score(1 - labels, -scores))
    assert set(rows["n_id"]) == {len(s_in)}
    assert set(rows["n_ood"]) == {len(s_out)}

    probs = torch.cat([p.probs for p, _ in known]).double().numpy()
    y = torch.cat([y for _, y in known]).numpy()
    clf = pd.read_csv(out / "clf-out.csv")
    clf_value = clf[clf["Run"] == "ce"].set_index("Metric")["Value"]
    assert clf_value["Accuracy"] == pytest.approx(100 * (probs.argmax(1) == y).mean())
    assert clf_value["NLL"] == pytest.approx(log_loss(y, probs / probs.sum(1, keepdims=True)), rel=1e-5, abs=1e-6)


def test_aggregates_are_over_runs_that_differ_only_in_seed(out: Path) -> None:
    experiments = json.loads((out / "results-out.json").read_text())
    by_model = {entry["info"]["model"]: entry for entry in experiments}
    assert set(by_model) == {"fc_ddu", "fc_ce_baseline"}
    ddu = by_model["fc_ddu"]
    assert ddu["info"]["n"] == 2
    assert ddu["info"]["runs"] == ["ddu/one", "ddu/two"]
    assert sorted(ddu["info"]["seeds"]) == [1, 99]
    key = "between/gmm_log_density/AUROC"
    assert len(ddu["values"][key]) == 2
    assert ddu["mean"][key] == pytest.approx(np.mean(ddu["values"][key]))
    assert ddu["standard_error"][key] == pytest.approx(np.std(ddu["values"][key], ddof=1) / 2**0.5)
    assert by_model["fc_ce_baseline"]["standard_error"]["Accuracy"] is None


def test_figures_and_raw_scores_are_written(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "ddu" / "one", tmp_path / "runs" / "ddu" / "one")
    evaluate(request(tmp_path / "runs", tmp_path))
    folder = tmp_path / "figures-out" / "ddu__one"
    names = {path.name for path in folder.iterdir()}
    assert {
        "hist-gmm_log_density.png",
        "roc-gmm_log_density.png",
        "hist-max_p_y_x.png",
        "reliability.png",
    } <= names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)
    with np.load(tmp_path / "scores-out" / "ddu__one.npz") as scores:
        assert {"id/labels", "id/probs", "id/score:gmm_log_density", "between/score:p(x)"} <= set(scores.files)


@pytest.mark.parametrize("stand_in", [None, "two_moons"])
def test_every_input_is_forwarded_once(
    stand_in: str | None, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarded = []
    load = checkpoints.load

    def counting(path: Path) -> checkpoints.Run:
        loaded = load(path)
        loaded.method.network.head.register_forward_hook(  # type: ignore[union-attr, operator]
            lambda module, args, output: forwarded.append(len(output))
        )
        return loaded

    monkeypatch.setattr(checkpoints, "load", counting)
    report = evaluate(
        request(
            runs / "ddu",
            tmp_path,
            dataset=stand_in,
            eval_classification=True,
            eval_ood_calibration=True,
            ood_dataset=["anomalous_gaussian2d", "between"],
            no_plots=True,
        )
    )
    rows = report.ood.drop_duplicates(["Run", "OOD dataset"])
    needed = rows["n_ood"].sum() + rows.drop_duplicates("Run")["n_id"].sum()
    assert sum(forwarded) / needed == 1.0


def test_each_data_set_is_read_once_a_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uncertainty_est.data.source import PartitionedSource

    reads: list[tuple[int, str]] = []
    for cls in _subclasses(PartitionedSource):
        if "load" in vars(cls) and not getattr(cls.load, "__isabstractmethod__", False):
            original = cls.load

            def load(self: PartitionedSource, part: str, original=original):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
                reads.append((id(self), part))
                return original(self, part)

            monkeypatch.setattr(cls, "load", load)
    evaluate(request(runs / "ce", tmp_path, ood_dataset=["anomalous_gaussian2d", "between"], no_plots=True))
    assert len(reads) == 3
    assert len(set(reads)) == 3


def _subclasses(cls: type) -> list[type]:
    return [s for direct in cls.__subclasses__() for s in [direct, *_subclasses(direct)]]


def test_max_eval_limits_every_data_set(runs: Path, tmp_path: Path) -> None:
    report = evaluate(request(runs / "ce", tmp_path, max_eval=1, batch_size=16, no_plots=True))
    assert report.ood["n_id"].max() <= 16
    assert report.ood["n_ood"].max() <= 16


def test_another_data_set_can_stand_in_for_the_id_set(runs: Path, tmp_path: Path) -> None:
    report = evaluate(request(runs / "ce", tmp_path, dataset="between", ood_dataset=["gaussian_noise"], no_plots=True))
    assert set(report.ood["ID dataset"]) == {"between"}
    assert set(report.ood["OOD dataset"]) == {"gaussian_noise"}


def test_a_runs_own_set_may_be_named(runs: Path, tmp_path: Path) -> None:
    plain, named = (
        evaluate(request(runs / "ce", tmp_path, ood_dataset=["between"], no_plots=True, **asked))
        for asked in ({}, {"dataset": "gaussian2d"})
    )
    assert named.failed == []
    pd.testing.assert_frame_equal(named.ood, plain.ood)


@pytest.mark.parametrize("asked", [{}, {"dataset": "gaussian2d"}, {"dataset": "gaussian_noise"}])
def test_a_set_is_not_in_and_out_of_distribution(asked: dict[str, str], runs: Path, tmp_path: Path) -> None:
    name = asked.get("dataset", "gaussian2d")
    report = evaluate(request(runs / "ce", tmp_path, ood_dataset=[name, "between"], no_plots=True, **asked))
    (failed,) = report.failed
    assert failed["Error"] == (
        f"ConfigError: --ood-dataset: '{name}' is scored as the in-distribution set; name other OOD sets"
    )


def test_an_unexpected_failure_is_logged_with_its_traceback_and_a_users_mistake_is_not(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(path: Path) -> checkpoints.Run:
        raise KeyError("a defect of ours") if path.name == "ce" else DataError("a damaged file")

    monkeypatch.setattr(checkpoints, "load", defect)
    report = evaluate(request(runs, tmp_path, no_plots=True))
    assert len(report.failed) == 3
    traced = {record.args[0]: bool(record.exc_info) for record in caplog.records if record.levelname == "ERROR"}
    assert traced == {"ce": True, "ddu/one": False, "ddu/two": False}


def test_an_ood_set_that_the_run_was_tuned_on_is_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "ce", tmp_path / "runs" / "tuned")
    path = tmp_path / "runs" / "tuned" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["val_ood_datasets"] = ["between"]
    config["test_ood_datasets"] = []
    path.write_text(yaml.safe_dump(config))
    report = evaluate(request(tmp_path / "runs", tmp_path, ood_dataset=["between"], no_plots=True))
    assert "'between' is also in" in report.failed[0]["Error"]


def test_a_set_made_of_the_in_distribution_set_is_made_of_the_runs_own() -> None:
    (fixed,) = compose_points("dataset=digits", "model=img_ce_baseline", "+fixed.sources.digits.max_items=300")
    complete = with_sources({**fixed, "test_ood_datasets": ["smoothed_noise"]}, CONFIGS / "source")
    assert complete["sources"]["smoothed_noise"]["source"] == fixed["sources"]["digits"]
    assert complete["sources"]["digits"] == fixed["sources"]["digits"]


def test_groups_get_rows_of_their_own(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "ce", tmp_path / "runs" / "grouped")
    path = tmp_path / "runs" / "grouped" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["ood_groups"] = {"far": ["anomalous_gaussian2d", "between", "not_scored"], "near": ["not_scored"]}
    path.write_text(yaml.safe_dump(config))
    report = evaluate(
        request(tmp_path / "runs", tmp_path, ood_dataset=["anomalous_gaussian2d", "between"], no_plots=True)
    )
    value = report.ood.set_index(["OOD dataset", "Score", "Metric"])["Value"]
    for metric in ("AUROC", "FPR95"):
        mean = (value["anomalous_gaussian2d", "p(x)", metric] + value["between", "p(x)", metric]) / 2
        assert value["far", "p(x)", metric] == pytest.approx(mean)
    assert "near" not in set(report.ood["OOD dataset"])
    groups = report.ood.drop_duplicates("OOD dataset").set_index("OOD dataset")["Group"]
    assert groups.to_dict() == {"anomalous_gaussian2d": "far", "between": "far", "far": "mean"}


def test_the_command_prints_the_table_and_the_paths(runs: Path, tmp_path: Path) -> None:
    command = ["evaluate.py", "--checkpoint-dir", str(runs), "--output-folder", str(tmp_path)]
    result = Command([*command, "--max-eval", "1", "--no-plots"]).wait()
    assert result.returncode == 0, result.stderr
    assert "AUROC of the headline score" in result.stdout
    assert "ddu/one" in result.stdout
    assert str(tmp_path / "ood-out.csv") in result.stdout


def test_a_failure_sets_the_exit_code(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "ce" / "checkpoint.pt").write_bytes(b"")
    command = ["evaluate.py", "--checkpoint-dir", str(tmp_path / "runs"), "--no-plots"]
    result = Command([*command, "--output-folder", str(tmp_path)]).wait()
    assert result.returncode == 1
    assert "not scored: ce" in result.stdout
    assert "Traceback" not in result.stderr + result.stdout
    assert (tmp_path / "ood-out.csv").exists()


def test_the_summary_shows_accuracy_beside_auroc(runs: Path, tmp_path: Path) -> None:
    text = summary(evaluate(request(runs / "ce", tmp_path, no_plots=True)))
    header = next(line for line in text.splitlines() if "Accuracy" in line)
    assert "between" in header


def test_scod_and_complexity_where_asked_for(runs: Path, tmp_path: Path) -> None:
    report = evaluate(request(runs / "ce", tmp_path, eval_scod=True, complexity=True, no_plots=True))
    assert report.failed == []
    assert "SCOD AURC" in set(report.ood["Metric"])
    sizes = pd.read_csv(tmp_path / "complexity-out.csv").set_index("Metric")["Value"]
    network = checkpoints.load(runs / "ce").method.network
    weights = [p for p in network.parameters() if p.ndim == 2]  # type: ignore[union-attr]
    assert sizes["FLOPs"] == 2 * sum(w.numel() for w in weights)
