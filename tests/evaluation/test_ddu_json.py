"""Results in DDU's own form: keys, positive classes, standard errors and names by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import CONFIGS, compose_points, quick_overrides
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.aggregate import RunTables
from uncertainty_est.evaluation.ddu_json import ddu_results, network_name
from uncertainty_est.request import Request
from uncertainty_est.run import run

KEYS = ["accuracy", "ece"] + [f"m{i}_{metric}" for i in (1, 2) for metric in ("auroc", "auprc")]
KEYS += ["t_ece"] + [f"t_m{i}_{metric}" for i in (1, 2) for metric in ("auroc", "auprc")]
WRN = {"_target_": "uncertainty_est.networks.wide_resnet.WideResNet", "depth": 28, "widen_factor": 10, "mod": True}
SN = {"_target_": "uncertainty_est.networks.lipschitz.SpectralLayers", "coeff": 3}
MARKS = {"AUROC": 0.0, "AUPR-IN": 1.0, "AUPR-OUT": 2.0, "FPR95": 3.0}


def tables(seed: int, base: float, scores: list[str], scaled: bool = True, **fixed: Any) -> RunTables:
    """A run whose i-th score has AUROC ``base + 4 i``, AUPR-IN 1 and AUPR-OUT 2 more; scaled ones half of all that."""
    run_name = f"run{seed}"
    rows = []
    for group, ood in (("far", "svhn"), ("mean", "far")):
        for i, score in enumerate(scores):
            for metric, more in MARKS.items():
                head = {"OOD dataset": ood, "Metric": metric, "Group": group, "Run": run_name}
                rows.append({**head, "Score": score, "Value": base + 4 * i + more})
                if scaled:
                    rows.append({**head, "Score": f"t_{score}", "Value": (base + 4 * i + more) / 2})
    clf = [{"Score": "", "Metric": "Accuracy", "Value": base, "Run": run_name}]
    clf += [{"Score": "", "Metric": "ECE", "Value": base / 10, "Run": run_name}]
    clf += [{"Score": "", "Metric": "t_ECE", "Value": base / 20, "Run": run_name}] * scaled
    known = {"model": "img_ddu", "dataset": "cifar10", "seed": seed, "model_config": {"network": {**WRN, "layers": SN}}}
    return RunTables({**known, **fixed}, pd.DataFrame(rows), pd.DataFrame(clf))


def test_ddu_itself_by_hand() -> None:
    scores = ["gmm_log_density", "gmm_entropy", "max p(y|x)", "p(x)", "Entropy"]
    files = ddu_results([tables(4, 60.0, scores), tables(5, 64.0, scores)])
    assert list(files) == [f"res_wide_resnet_sn_3.0_mod_4_{pair}_cifar10_svhn.json" for pair in ("gmm", "softmax")]
    gmm, softmax = files.values()
    for content in (gmm, softmax):
        assert list(content) == ["mean", "std", "values", "info"]
        assert all(sorted(content[kind]) == sorted(KEYS) for kind in ("mean", "std", "values"))
        assert content["values"]["accuracy"] == [0.60, 0.64]
        # Unbiased standard deviation 4 / sqrt 2, over sqrt 2 runs.
        assert content["std"]["accuracy"] == pytest.approx(0.02) and content["mean"]["ece"] == pytest.approx(0.062)
        assert content["mean"]["t_ece"] == pytest.approx(0.031) and content["info"]["seeds"] == [4, 5]
        json.dumps(content, allow_nan=False)
    # Density: ID positive. Entropies: OOD positive. No temperature touches what is known of features.
    expected = {"m1_auroc": 0.62, "m1_auprc": 0.63, "m2_auroc": 0.66, "m2_auprc": 0.68}
    expected |= {f"t_{key}": value for key, value in expected.items()}
    assert {key: gmm["mean"][key] for key in expected} == pytest.approx(expected)
    expected = {"m1_auroc": 0.74, "m1_auprc": 0.75, "m2_auroc": 0.78, "m2_auprc": 0.80}
    expected |= {f"t_{key}": value / 2 for key, value in expected.items()}
    assert {key: softmax["mean"][key] for key in expected} == pytest.approx(expected)


def test_an_ensemble_has_uncertainties_only_and_no_temperature() -> None:
    made = {"model": "img_ce_baseline (ensemble)", "model_config": {"network": WRN | {"mod": False}}}
    ensemble = tables(4, 60.0, ["MI", "Entropy", "Variance"], scaled=False, **made)
    together = RunTables({**ensemble.fixed, "seed": [4, 5]}, ensemble.ood, ensemble.clf)
    ((name, content),) = ddu_results([together]).items()
    assert name == "res_wide_resnet_4_ensemble_cifar10_svhn.json"
    assert content["mean"]["m1_auprc"] == pytest.approx(0.62) and content["mean"]["m2_auprc"] == pytest.approx(0.66)
    assert content["std"]["m1_auroc"] is None and content["values"]["t_m1_auroc"] is None
    # An MI of a Dirichlet distribution is not one of members.
    assert ddu_results([tables(1, 60.0, ["MI", "Entropy"])]) == {}


def test_experiments_of_one_name_are_kept_apart() -> None:
    scores = ["p(x)", "Entropy"]
    files = ddu_results([tables(1, 60.0, scores), tables(1, 70.0, scores, batch_size=7)])
    assert list(files) == [f"res_wide_resnet_sn_3.0_mod_1_softmax_cifar10_svhn{end}.json" for end in ("", "_2")]
    assert [content["mean"]["accuracy"] for content in files.values()] == [0.6, 0.7]


def test_without_classes_or_outliers_there_is_nothing_to_tell() -> None:
    full = tables(1, 60.0, ["p(x)", "Entropy"])
    assert ddu_results([RunTables(full.fixed, full.ood, pd.DataFrame())]) == {}
    assert ddu_results([RunTables(full.fixed, pd.DataFrame(), full.clf)]) == {}


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("wrn", "wide_resnet_sn_3.0_mod"),
        ("wrn_10_1", "wide_resnet_10_1_sn_3.0_mod"),
        ("resnet18", "resnet18_sn_3.0_mod"),
        ("vgg16", "vgg16_sn_3.0_mod"),
    ],
)
def test_names_of_networks(network: str, name: str) -> None:
    (fixed,) = compose_points("dataset=cifar10", "model=img_ddu", f"network={network}")
    assert network_name(fixed) == name
    plain = ["fixed.model_config.network.layers=null", "fixed.model_config.network.mod=false"]
    (fixed,) = compose_points("dataset=cifar10", "model=img_ddu", f"network={network}", *plain)
    assert network_name(fixed) == name.split("_sn")[0]


def test_of_real_runs(small_data: Callable[[str], Path], tmp_path: Path) -> None:
    for seed in (1, 2):
        overrides = quick_overrides("fc_ddu", small_data("fc"), tmp_path / "runs")
        quick = ["fixed.trainer_config.max_epochs=2", "logger=none", f"fixed.seed={seed}"]
        (fixed,) = compose_points(*overrides, *quick)
        run(**fixed)
    request = Request(
        tmp_path / "out",
        CONFIGS / "source",
        checkpoint_dir=tmp_path / "runs",
        ensemble=True,
        ddu_json=True,
        temperature_scaling=True,
        no_plots=True,
    )
    report = evaluate(request)
    assert report.failed == []
    files = {path.name: json.loads(path.read_text()) for path in report.files if path.parent.name == "ddu-out"}
    stem = "res_fc_sn_0.65_mod_1_{}_gaussian2d_between.json"
    assert sorted(files) == [stem.format(pair) for pair in ("ensemble", "gmm", "softmax")]
    for pair, score in (("gmm", "gmm_log_density"), ("softmax", "p(x)")):
        rows = report.ood[(report.ood["Score"] == score) & (report.ood["Metric"] == "AUPR-IN")]
        content = files[stem.format(pair)]
        assert content["values"]["m1_auprc"] == pytest.approx((rows["Value"] / 100).tolist())
        assert content["std"]["m1_auprc"] == pytest.approx(rows["Value"].std() / 100 / math.sqrt(2))
    assert files[stem.format("softmax")]["mean"]["t_ece"] is not None
