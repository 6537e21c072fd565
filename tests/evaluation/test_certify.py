"""Certificates: their tables against independent arithmetic, and no attack on CCU gets past them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from uncertainty_est.densities.pca_metric import PCAMetric
from uncertainty_est.evaluation.attack import Region, attack, log_confidence_of
from uncertainty_est.evaluation.certify import Certified, certificate_table, certify
from uncertainty_est.evaluation.tables import RunInfo
from uncertainty_est.models.ccu import CCU
from uncertainty_est.networks.fc import FC

INFO = RunInfo("run", "CCU", "fc_ccu", "data", 1, "runs/run")


class Decaying:
    """Of two classes, with the bound ``1/2 + exp(R - |x|) / 2`` in the Euclidean metric."""

    def __init__(self) -> None:
        self.metric = PCAMetric(3, "none")
        self.rows: list[int] = []

    def confidence_bound(self, x: Tensor, radius: Tensor) -> Tensor:
        self.rows.append(len(x))
        return 0.5 + 0.5 * (radius - x.double().norm(dim=1)).exp().clamp(max=1)

    def certified_radius(self, x: Tensor, factor: float = 1.1) -> Tensor:
        return (x.double().norm(dim=1) + math.log(factor - 1)).clamp(min=0)


def test_a_certificate_is_what_the_method_says_a_few_rows_at_a_time() -> None:
    method = Decaying()
    assert isinstance(method, Certified)
    x = 4 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    norm = x.double().norm(dim=1).numpy()
    certificate = certify(method, x, [0.0, 0.5], max_rows=8)
    assert max(method.rows) == 8
    np.testing.assert_allclose(certificate.radius, np.maximum(norm + np.log(0.1), 0))
    np.testing.assert_allclose(certificate.bounds[0.5], 0.5 + 0.5 * np.exp(np.minimum(0.5 - norm, 0)))
    positive = certificate.radius > 0
    assert 0 < positive.sum() < 50
    np.testing.assert_allclose(certificate.bound[positive], 0.55)
    np.testing.assert_allclose(certificate.bound[~positive], certificate.bounds[0.0][~positive])


def test_the_table_tells_means_percentiles_shares_and_the_auroc_against_bounds() -> None:
    x = 4 * torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    certificate = certify(Decaying(), x, [0.0, 2.0])
    known = np.random.default_rng(0).uniform(0.5, 1, 80)
    table = certificate_table(INFO, known, {"noise": certificate})
    assert list(table.columns[:7]) == ["Model", "Model Type", "ID dataset", "OOD dataset", "Score", "Metric", "Value"]
    assert set(table["n_id"]) == {80}
    assert set(table["n_ood"]) == {60}
    value = {(metric, radius): v for metric, radius, v in table[["Metric", "Radius", "Value"]].fillna(-1).values}
    for radius, bounds in {0.0: certificate.bounds[0.0], 2.0: certificate.bounds[2.0], -1: certificate.bound}.items():
        auroc = roc_auc_score(np.r_[np.ones(80), np.zeros(60)], np.r_[known, bounds])
        assert value["Guaranteed AUROC", radius] == pytest.approx(100 * auroc)
        assert value["Certified confidence", radius] == pytest.approx(100 * bounds.mean())
    assert value["Guaranteed AUROC", 2.0] < value["Guaranteed AUROC", 0.0]
    assert value["Certified fraction", -1] == pytest.approx(100 * np.mean(certificate.radius > 0))
    assert value["Certified radius (mean)", -1] == pytest.approx(certificate.radius.mean())
    assert value["Certified radius (median)", -1] == pytest.approx(np.median(certificate.radius))
    assert value["Certified radius (p95)", -1] == pytest.approx(np.quantile(certificate.radius, 0.95))


def random_ccu(seed: int, whitening: str) -> CCU:
    """An over-confident classifier of 3 classes in random mixtures."""
    torch.manual_seed(seed)
    network = FC(data_shape=[4], num_classes=3, hidden_dims=[16])
    method = CCU(network, [4], num_components=3, whitening=whitening)
    method.metric.fit(torch.randn(200, 4) * torch.tensor([3.0, 1.0, 0.3, 0.1]))
    assert method.outside is not None
    with torch.no_grad():
        network.head.weight.mul_(100)
        for mixture in (method.inside, method.outside):
            mixture.mean.copy_(torch.randn(3, 4))
            mixture.log_var.copy_(torch.randn(3) - 1)
            mixture.fitted.fill_(True)
    method.keep_apart()
    return method.eval()


@pytest.mark.parametrize("whitening", ["covariance", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_no_attack_on_ccu_gets_past_its_certificate(seed: int, whitening: str) -> None:
    method = random_ccu(seed, whitening)
    generator = torch.Generator().manual_seed(seed)
    seeds = method.metric.unwhiten(6 * torch.randn(60, 4, generator=generator, dtype=torch.float64)).float()
    certified = method.certified_radius(seeds)
    assert int((certified > 0).sum()) > 0
    for radius in (certified, 4 * torch.rand(60, generator=generator, dtype=torch.float64)):
        region = Region(seeds, radius, method.metric, seeds - 100, seeds + 100)
        found = attack(log_confidence_of(method), region, steps=40, restarts=3, step_size=0.3)
        assert bool((method.metric.distance(found.x, seeds) <= radius).all())
        confidence = method.predict(found.x).probs
        assert confidence is not None
        # Probabilities are float32; so is a bound that they may touch.
        assert bool((confidence.amax(-1) <= method.confidence_bound(seeds, radius).float()).all())
    # Not for want of trying: the last attack moved the confidence a good part of the way.
    assert float((found.log_confidence - log_confidence_of(method)(seeds)).max()) > 0.3
