"""Scores of features: against NumPy, scikit-learn and densities of our own, and what no affine map changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from tests.posthoc.conftest import C, Samples
from uncertainty_est.densities.gaussian import GaussianStatistics, TiedGaussians
from uncertainty_est.errors import DataError, NotFittedError
from uncertainty_est.posthoc.base import all_scores, scores_named
from uncertainty_est.posthoc.gaussian import RMD, DDUDensity, Mahalanobis, NearestMean
from uncertainty_est.posthoc.knn import KNN
from uncertainty_est.posthoc.she import SHE
from uncertainty_est.posthoc.vim import ViM


def empirical(x: np.ndarray, mean: np.ndarray) -> EmpiricalCovariance:
    """scikit-learn's, about a given mean."""
    estimate = EmpiricalCovariance(assume_centered=True).fit(x - mean)
    estimate.location_ = np.zeros(x.shape[1])
    return estimate


def distances(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Squared Mahalanobis distances ``[B]`` to the nearest class and to all data, by scikit-learn."""
    x, y, z = samples.features.double().numpy(), samples.labels.numpy(), samples.z.double().numpy()
    means = np.stack([x[y == c].mean(0) for c in range(C)])
    tied, everything = empirical(x, means[y]), empirical(x, x.mean(0))
    nearest = np.stack([tied.mahalanobis(z - mean) for mean in means]).min(0)
    return nearest, everything.mahalanobis(z - x.mean(0))


def test_mahalanobis_and_its_relative_are_scikit_learns(samples: Samples) -> None:
    nearest, everything = distances(samples)
    np.testing.assert_allclose(samples.scores(Mahalanobis()), -nearest, rtol=1e-5)
    np.testing.assert_allclose(samples.scores(RMD()), everything - nearest, rtol=1e-5, atol=1e-4)


def test_in_float64_the_fast_distance_is_the_densitys(samples: Samples) -> None:
    statistics = GaussianStatistics(C, samples.z.shape[1])
    statistics.update(samples.features, samples.labels)
    density = TiedGaussians(C, samples.z.shape[1])
    density.fit(statistics)
    exact = density.squared_distances(samples.z).amin(-1)
    for dtype, rtol in ((torch.float64, 1e-11), (torch.float32, 3e-6)):
        got = NearestMean(density, dtype).squared_distance(samples.z.to(dtype))
        torch.testing.assert_close(got, exact, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ["mahalanobis", "rmd"])
def test_no_affine_map_of_the_features_changes_distances(samples: Samples, name: str) -> None:
    (score,), (mapped,) = scores_named([name]), scores_named([name])
    expected = samples.scores(score)
    generator = torch.Generator().manual_seed(7)
    matrix = torch.randn(12, 12, generator=generator, dtype=torch.float64) + 4 * torch.eye(12)
    samples.features, samples.z = (x.double() @ matrix + 100 for x in (samples.features, samples.z))
    samples.head = samples.head.double()
    torch.testing.assert_close(samples.scores(mapped), expected, rtol=1e-4, atol=1e-3)


def test_digits_survive_a_mean_that_dwarfs_the_spread(samples: Samples) -> None:
    expected = samples.scores(Mahalanobis())
    # Multiples of 2^-10 that a shift by 2^12 leaves exact in float32.
    samples.features, samples.z = (x.mul(2**10).round().div(2**10) for x in (samples.features, samples.z))
    rounded = samples.scores(Mahalanobis())
    samples.features, samples.z = samples.features + 2**12, samples.z + 2**12
    torch.testing.assert_close(samples.scores(Mahalanobis()), rounded, rtol=1e-4, atol=0)
    torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0)


def test_a_step_towards_the_data_shortens_the_distance(samples: Samples) -> None:
    score = Mahalanobis(epsilon=0.01)
    plain = samples.scores(score)

    def classifier(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, samples.head(x)

    moved = score.score_inputs(samples.z, classifier, torch.tensor(1.0))
    assert (moved > plain).all()
    generator = torch.Generator().manual_seed(0)
    numeric = samples.z.double()[:1] + 0.0
    direction = torch.randn(numeric.shape, generator=generator, dtype=torch.float64)
    nearest = score.require(score._classes)
    x = samples.z[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nearest.squared_distance(x).sum(), x)
    h = 1e-2
    ends = [nearest.squared_distance((numeric + s * h * direction).float()) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close((gradient.double() * direction).sum(-1), slope, rtol=1e-3, atol=1e-2)


def test_ddu_is_a_mixture_of_normals(samples: Samples) -> None:
    # Features after a ReLU may have no variance in a class, where only a jitter gives a density.
    spread = torch.Generator().manual_seed(5)
    samples.features = samples.features + 0.1 * torch.randn(samples.features.shape, generator=spread)
    x, y, z = samples.features.double(), samples.labels, samples.z.double()
    joint = []
    for c in range(C):
        normal = torch.distributions.MultivariateNormal(x[y == c].mean(0), torch.cov(x[y == c].T))
        joint.append(normal.log_prob(z) + (y == c).double().mean().log())
    torch.testing.assert_close(samples.scores(DDUDensity()), torch.stack(joint).logsumexp(0))


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_scikit_learns_also_in_chunks(samples: Samples, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = samples.features / samples.features.norm(dim=-1, keepdim=True)
    queries = samples.z / samples.z.norm(dim=-1, keepdim=True)
    expected = NearestNeighbors(n_neighbors=k).fit(unit.double()).kneighbors(queries.double())[0][:, -1]
    np.testing.assert_allclose(samples.scores(KNN(k)), -expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("uncertainty_est.posthoc.knn._CHUNK", 7 * len(unit))
    np.testing.assert_allclose(samples.scores(KNN(k)), -expected, rtol=1e-5, atol=1e-6)


def test_neighbours_at_tiny_distances_keep_their_digits() -> None:
    # 1 - cos of this angle is below the resolution of float32.
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    knn = KNN(k=1)
    knn.fit(bank, bank, torch.zeros(2, dtype=torch.long), nn.Identity())
    assert knn.score(torch.tensor([[1.0, 1e-5]]), bank).item() == pytest.approx(-1e-5, rel=1e-4)
    assert knn.score(torch.tensor([[5.0, 5e-5], [0.0, 0.0]]), bank).isfinite().all()


def test_vim_by_scikit_learns_principal_components(samples: Samples) -> None:
    weight, bias = samples.head.weight.detach().double().numpy(), samples.head.bias.detach().double().numpy()
    origin = -np.linalg.pinv(weight) @ bias
    np.testing.assert_allclose(weight @ origin + bias, 0, atol=1e-9)
    x, z = (t.double().numpy() - origin for t in (samples.features, samples.z))
    pca = PCA(n_components=5)
    pca.fit(np.r_[x, -x])  # symmetric about the origin, so that its mean is the origin
    rest = [np.linalg.norm(t - pca.inverse_transform(pca.transform(t)), axis=1) for t in (x, z)]
    alpha = samples.logits.amax(-1).double().numpy().mean() / rest[0].mean()
    energy = samples.head(samples.z).detach().double().logsumexp(-1).numpy()
    np.testing.assert_allclose(samples.scores(ViM(dim=5)), energy - alpha * rest[1], rtol=1e-5, atol=1e-5)


def test_she_reads_means_of_what_is_predicted_right(samples: Samples) -> None:
    predicted = samples.logits.argmax(-1)
    of_z = samples.head(samples.z).argmax(-1)
    expected = torch.stack(
        [
            z @ samples.features[(predicted == c) & (samples.labels == c)].mean(0)
            for z, c in zip(samples.z, of_z, strict=True)
        ]
    )
    assert (predicted != samples.labels).any()
    torch.testing.assert_close(samples.scores(SHE()).float(), expected)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("knn:k=301", "300 training inputs"),
        ("vim:dim=12", "of 12 features none is left"),
        ("she", "no training input of class 3"),
        ("ddu", "class 3 has 0 training samples"),
        ("mahalanobis", "class 3 has no training sample"),
    ],
)
def test_data_that_do_not_determine_a_score_are_told(samples: Samples, spec: str, sentence: str) -> None:
    samples.labels = samples.labels.clamp(max=2)
    (score,) = scores_named([spec])
    with pytest.raises(DataError, match=sentence):
        samples.scores(score)


def test_vim_tells_features_of_too_few_dimensions(samples: Samples) -> None:
    samples.head = nn.Linear(12, C, bias=False)
    samples.features = samples.features[:, :3].repeat(1, 4)
    with pytest.raises(DataError, match="within 6 dimensions"):
        samples.scores(ViM(dim=6))


def test_no_score_is_read_before_its_fit(samples: Samples) -> None:
    for cls in all_scores().values():
        if cls.split is not None:
            with pytest.raises(NotFittedError, match="is not fitted: call fit"):
                cls().score(samples.z, samples.z[:, :C])


@pytest.mark.parametrize("name", [name for name, cls in all_scores().items() if cls.package is None])
def test_scores_do_not_depend_on_batch_mates_and_leave_the_head_alone(samples: Samples, name: str) -> None:
    spec = f"{name}:min_jitter=1e-6" if name == "ddu" else name
    (score,) = scores_named([spec])
    before = {key: value.clone() for key, value in samples.head.state_dict().items()}
    together = samples.scores(score)
    logits = samples.head(samples.z).detach()
    one_by_one = torch.cat([score.score(z, f) for z, f in zip(samples.z.split(1), logits.split(1), strict=True)])
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-5)
    assert together.shape == (len(samples.z),) and together.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in samples.head.state_dict().items())
    assert score.score(samples.z[:0], logits[:0]).shape == (0,)
