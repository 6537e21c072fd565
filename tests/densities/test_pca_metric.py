"""The PCA metric: against numpy's covariance, as a metric, as a map and back, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from uncertainty_est.densities.pca_metric import WHITENINGS, PCAMetric
from uncertainty_est.errors import DataError, NotFittedError

D = 5


def data(n: int = 400, seed: int = 0) -> Tensor:
    """Correlated, with a mean far from zero and widths from 1e-1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, D, dtype=torch.float64)
    return z @ torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q + 100


def fitted(whitening: str = "covariance", x: Tensor | None = None) -> PCAMetric:
    x = data() if x is None else x
    metric = PCAMetric(x.shape[1], whitening)
    metric.fit(x)
    return metric


def test_whitened_data_have_unit_covariance_and_no_mean() -> None:
    z = fitted().whiten(data())
    torch.testing.assert_close(z.T.cov(), torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.mean(0), torch.zeros(D, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_distance_is_scipys_mahalanobis() -> None:
    x = data()
    inverse = np.linalg.inv(np.cov(x.numpy().T))
    expected = [mahalanobis(a, b, inverse) for a, b in zip(x[:20].numpy(), x[20:40].numpy(), strict=True)]
    got = fitted().distance(x[:20], x[20:40])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


def test_singular_whitening_divides_by_roots_of_singular_values() -> None:
    x = data()
    _, s, v = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    expected = np.linalg.norm(((x[:20] - x[20:40]).numpy() @ v.T) / np.sqrt(s), axis=1)
    metric = fitted("singular")
    np.testing.assert_allclose(metric.distance(x[:20], x[20:40]).numpy(), expected, rtol=1e-9)
    assert float(metric.half_log_det()) == pytest.approx(0.5 * np.log(s).sum(), rel=1e-12)


def test_half_log_det_is_that_of_the_covariance() -> None:
    assert float(fitted().half_log_det()) == pytest.approx(0.5 * np.linalg.slogdet(np.cov(data().numpy().T))[1])
    assert float(PCAMetric(D, "none").half_log_det()) == 0.0


def test_without_whitening_it_is_euclidean_and_needs_no_fit() -> None:
    x = data()
    metric = PCAMetric(D, "none")
    assert torch.equal(metric.distance(x[:9], x[9:18]), (x[:9] - x[9:18]).norm(dim=1))
    assert metric.fitted


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_it_is_a_metric(whitening: str) -> None:
    metric = fitted(whitening)
    x, y, z = (100 + 30 * torch.randn(500, D, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    assert (metric.distance(x, z) <= (metric.distance(x, y) + metric.distance(y, z)) * (1 + 1e-12)).all()
    torch.testing.assert_close(metric.distance(x, y), metric.distance(y, x))
    assert (metric.distance(x, x) == 0).all()
    assert (metric.distance(x, y) > 0).all()


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_unwhiten_takes_back_what_whiten_gave(whitening: str) -> None:
    metric, x = fitted(whitening), data(seed=3)
    torch.testing.assert_close(metric.unwhiten(metric.whiten(x)), x, rtol=1e-12, atol=1e-9)


def test_directions_without_variance_are_stretched_a_thousandfold_at_most() -> None:
    x = torch.cat([data(), torch.full((400, 1), 7.0, dtype=torch.float64)], dim=1)
    metric = fitted(x=x)
    largest = np.linalg.eigvalsh(np.cov(x.numpy().T)).max()
    moved = x.clone()
    moved[:, -1] += 1
    expected = torch.full((400,), 1 / (1e-6 * largest) ** 0.5, dtype=torch.float64)
    torch.testing.assert_close(metric.distance(x, moved), expected, rtol=1e-8, atol=0)


def test_images_are_flattened_and_gradients_flow() -> None:
    x = torch.randn(30, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    metric = fitted(x=x.flatten(1))
    assert torch.equal(metric.whiten(x), metric.whiten(x.flatten(1)))
    inputs = x[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(metric.whiten, inputs)


def test_casts_and_autocast_leave_float64() -> None:
    metric, x = fitted(), data()
    expected = metric.whiten(x)
    torch.nn.Sequential(metric).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(metric.whiten(x), expected)


def test_a_saved_fit_is_the_same() -> None:
    metric, other = fitted(), PCAMetric(D)
    with pytest.raises(NotFittedError, match="PCAMetric is not fitted"):
        other.whiten(data())
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.whiten(data()), metric.whiten(data()))
    other.load_state_dict(PCAMetric(D).state_dict())
    with pytest.raises(NotFittedError):
        other.whiten(data())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="whitening must be one of covariance, singular, none, got 'zca'"):
        PCAMetric(D, "zca")
    with pytest.raises(DataError, match="at least 2 training items, got 1"):
        PCAMetric(D).fit(data()[:1])
    with pytest.raises(DataError, match="all of them are the same"):
        PCAMetric(D).fit(torch.ones(4, D))
    with pytest.raises(ValueError, match="must be finite"):
        PCAMetric(D).fit(torch.full((4, D), torch.nan))
