"""Methods learn what their papers say, on data where the answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import compose_points
from uncertainty_est.launch import run_points


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    """Results of one quiet run on the CPU."""
    quiet = ("trainer=cpu", "logger=none", "fixed.trainer_config.enable_progress_bar=false")
    (results,) = run_points(compose_points(*quiet, f"fixed.output_folder={folder}", *overrides))
    return results


@pytest.mark.slow
def test_ddus_density_knows_the_two_moons_and_softmax_entropy_does_not(tmp_path: Path) -> None:
    """DDU, Fig. 1: far from the data the density is low, while softmax is more certain than on the data."""
    results = train(tmp_path, "dataset=two_moons", "model=fc_ddu", "fixed.trainer_config.max_epochs=10")
    scores = results["ood"]["two_moons_far"]
    assert results["classification"]["Accuracy"] > 90
    assert scores["gmm_log_density"]["AUROC"] >= 99
    assert scores["Entropy"]["AUROC"] < 50


@pytest.mark.slow
def test_a_prior_network_knows_the_ring_that_it_has_not_seen(tmp_path: Path) -> None:
    """Trained on uniform noise as outliers, it has little evidence on the far ring as well."""
    outliers = "fixed.ood_dataset=uniform_noise"
    results = train(tmp_path, "dataset=gaussian2d", "model=fc_priornet", outliers, "fixed.trainer_config.max_epochs=30")
    scores = results["ood"]["anomalous_gaussian2d"]
    assert results["classification"]["Accuracy"] > 99
    assert scores["MI"]["AUROC"] > 99
    assert scores["log alpha0"]["AUROC"] > 99
