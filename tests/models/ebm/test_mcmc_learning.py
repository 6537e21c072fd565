"""Whole runs of methods with chains know the ring that they have not seen; softmax without a density does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Trained
from uncertainty_est.building import build_data
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.metrics.ood import ood_metrics

Get = Callable[[str], Trained]


def aurocs(trained: Trained, ood: str = "anomalous_gaussian2d") -> dict[str, float]:
    """AUROC in percent of every score of a trained method against the ring around its data."""
    source = {
        "_target_": "uncertainty_est.data.sources.synthetic.AnomalousGaussian2D",
        "shape": [2],
        "split_seed": 1,
    }
    fixed = {**trained.fixed, "sources": {**trained.fixed["sources"], ood: source}, "test_ood_datasets": [ood]}
    data = build_data(fixed)
    data.setup("test")
    known = score_loader(trained.run.method, data.id_test_loader())
    unknown = score_loader(trained.run.method, data.ood_loader(ood, "test"))
    return {name: 100 * ood_metrics(known.scores[name], unknown.scores[name])["AUROC"] for name in known.scores}


@pytest.mark.parametrize("model", ["fc_mcmc_supervised", "fc_mcmc_supervised_lipschitz"])
def test_jem_classifies_and_knows_the_ring(model: str, thoroughly: Get) -> None:
    run_ = thoroughly(model)
    scores = aurocs(run_)
    assert run_.results["classification"]["Accuracy"] >= 99
    assert scores["p(x)"] >= 99
    assert scores["Entropy"] < 60
    assert run_.results["ood"]["between"]["p(x)"]["AUROC"] >= 95


@pytest.mark.parametrize("model", ["fc_mcmc", "fc_discrete_mcmc"])
def test_densities_without_classes_know_the_ring(model: str, thoroughly: Get) -> None:
    run_ = thoroughly(model)
    assert aurocs(run_)["p(x)"] >= 99
    assert run_.results["ood"]["between"]["p(x)"]["AUROC"] >= 95
    assert run_.results["classification"] == {}


@pytest.mark.parametrize("model", ["fc_mcmc_priornet"])  # a parameter, so that processes share trained models
def test_an_energy_prior_network_has_little_evidence_outside(model: str, thoroughly: Get) -> None:
    """All Dirichlet scores know the ring, which a Prior Network needs outliers for."""
    run_ = thoroughly(model)
    scores = aurocs(run_)
    assert run_.results["classification"]["Accuracy"] >= 99
    assert min(scores[name] for name in ("p(x)", "MI", "log alpha0", "max p(y|x)")) >= 99
    assert min(values["AUROC"] for values in run_.results["ood"]["between"].values()) >= 80


@pytest.mark.parametrize("model", ["fc_mcmc_entropy"])
def test_the_entropy_is_large_outside_where_chains_have_been(model: str, thoroughly: Get) -> None:
    run_ = thoroughly(model)
    assert run_.results["classification"]["Accuracy"] >= 99
    assert aurocs(run_)["Entropy"] >= 99
