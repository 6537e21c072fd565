"""Mahalanobis distances of features: against scikit-learn, stages of all networks, and what is chosen on outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests.conftest import Trained, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.densities.gaussian import GaussianStatistics, TiedGaussians
from uncertainty_est.errors import DataError, NotFittedError
from uncertainty_est.launch import run_points
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.mahalanobis import Mahalanobis, regression
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.lenet import LeNet
from uncertainty_est.networks.resnet import ResNet
from uncertainty_est.networks.vgg import VGG16
from uncertainty_est.networks.wide_resnet import WideResNet

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def small() -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[3], num_classes=2, hidden_dims=[6, 5, 4], activation="tanh")


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    y = (torch.rand(400, generator=generator) < 0.25).long()
    x[y == 1] += 1.5
    return list(zip(x.split(64), y.split(64), strict=True))


def whole(batches: Batches) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return x, y


def test_tied_distances_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    z = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + 100 + 2 * y[:, None]
    statistics = GaussianStatistics(3, 4)
    for part in np.array_split(np.arange(300), 7):
        statistics.update(torch.from_numpy(z[part]), torch.from_numpy(y[part]))
    tied = TiedGaussians(3, 4)
    with pytest.raises(NotFittedError):
        tied.squared_distances(torch.zeros(1, 4))
    tied.fit(statistics)
    tied.half()  # refused: a rounded factor is another covariance
    means = np.stack([z[y == c].mean(0) for c in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(z - means[y])
    expected = np.stack([covariance.mahalanobis(z - mean) for mean in means], -1)
    got = tied.squared_distances(torch.from_numpy(z))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)
    # Linear discriminant analysis decides by the same distances, given equal priors.
    lda = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(z, y)
    assert (got.argmin(-1).numpy() == lda.predict(z)).mean() > 0.99
    point = torch.from_numpy(z[:2]).requires_grad_()
    assert torch.autograd.gradcheck(tied.squared_distances, point)


def test_a_class_without_samples_is_named() -> None:
    statistics = GaussianStatistics(3, 2)
    statistics.update(torch.randn(10, 2), torch.tensor([0, 2] * 5))
    with pytest.raises(DataError, match="class 1 has no training sample"):
        TiedGaussians(3, 2).fit(statistics)


def test_the_score_is_the_negative_distance_to_the_nearest_class(small: FC, batches: Batches) -> None:
    method = Mahalanobis(small, data_shape=[3])
    x, y = whole(batches)
    with pytest.raises(NotFittedError):
        method.predict(x)
    method.fit_posthoc(batches)
    with torch.no_grad():
        z = small.features(x).double()
    centred = torch.stack([z - z[y == c].mean(0) for c in range(2)], 1)
    own = centred[torch.arange(len(y)), y]
    expected = torch.einsum("bci,ij,bcj->bc", centred, (own.T @ own / len(y)).inverse(), centred).amin(-1)
    prediction, plain = method.predict(x), CEBaseline(small).predict(x)
    torch.testing.assert_close(prediction.scores["Mahalanobis"].double(), -expected, rtol=1e-5, atol=1e-5)
    assert list(prediction.scores) == ["Mahalanobis", *plain.scores] and torch.equal(prediction.probs, plain.probs)


@pytest.mark.parametrize(
    ("network", "dims"),
    [
        (FC([2, 5, 5], 3, hidden_dims=[7, 6, 5]), [7, 6, 5]),
        (FC([2, 5, 5], 3, hidden_dims=[6, 6, 6], residual=True), [6, 6, 6]),
        (LeNet([2, 12, 12], 3), [6, 16, 120, 84]),
        (VGG16([2, 17, 17], 3), [64, 128, 256, 512, 512]),
        (ResNet([2, 8, 8], 3), [64, 128, 256, 512]),
        (WideResNet([2, 8, 8], 3, depth=16, widen_factor=2), [32, 64, 128]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_features_of_every_stage(network: LeNet, dims: list[int]) -> None:
    size = {FC: 5, LeNet: 12, VGG16: 17}.get(type(network), 8)
    x = torch.randn(4, 2, size, size, generator=torch.Generator().manual_seed(0))
    network.eval()
    stages = network.stage_features(x)
    assert [tuple(z.shape) for z in stages] == [(4, dim) for dim in dims]
    assert torch.equal(stages[-1], network.features(x))
    assert all(z.std() > 0 for z in stages)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_stage_features_are_the_means_of_the_maps() -> None:
    torch.manual_seed(0)
    network = LeNet([1, 12, 12], 3).eval()
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(network.stage_features(x)[1], network.body[:5](x).mean((2, 3)))


def test_each_layer_is_perturbed_by_its_own_gradient(small: FC, batches: Batches) -> None:
    epsilon, std = 0.01, 0.5
    method = Mahalanobis(small, data_shape=[3], layers="all", epsilon=epsilon, std=std)
    method.fit_posthoc(batches)
    x = batches[0][0]
    expected = torch.zeros(len(x), dtype=torch.double)
    for layer in range(3):
        leaf = x.clone().requires_grad_()
        distance = method.densities[layer].squared_distances(small.stage_features(leaf)[layer]).amin(-1)
        (gradient,) = torch.autograd.grad(distance.sum(), leaf)
        moved = x - epsilon / std * gradient.sign()
        expected -= method.densities[layer].squared_distances(small.stage_features(moved)[layer]).amin(-1).detach() / 3
    score = method.get_ood_scores(x)["Mahalanobis"]
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)
    still = Mahalanobis(small, data_shape=[3], layers="all")
    still.fit_posthoc(batches)
    assert score.mean() > still.get_ood_scores(x)["Mahalanobis"].mean()


def test_regression_weighs_what_tells_the_sides_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    known, unknown = torch.randn(2, 500, 2, generator=generator, dtype=torch.double)
    unknown[:, 0] -= 3
    scale = torch.tensor([1e4, 1.0])  # of layers of many and of few dimensions
    weights = regression(known * scale, unknown * scale) * scale
    assert weights[0] > 1 and weights[0] > 5 * weights[1].abs()


def test_what_is_chosen_tells_held_out_outliers_best(small: FC, batches: Batches) -> None:
    epsilons = [0.0, 0.1, 0.5]
    method = Mahalanobis(small, data_shape=[3], epsilon=epsilons)
    assert method.needs_val_ood
    method.fit_posthoc(batches)
    x = batches[0][0]
    with pytest.raises(NotFittedError, match="no epsilon"):
        method.predict(x)
    outliers = torch.randn(70, 3, generator=torch.Generator().manual_seed(3)) - 1
    method.tune(batches, {"a": [(outliers, torch.zeros(70))]})
    values = []
    for epsilon in epsilons:
        fixed = Mahalanobis(small, data_shape=[3], epsilon=epsilon)
        fixed.fit_posthoc(batches)
        known, unknown = (fixed.get_ood_scores(z)["Mahalanobis"] for z in (whole(batches)[0], outliers))
        values.append(roc_auc_score([1] * len(known) + [0] * 70, torch.cat([known, unknown]).numpy()))
    assert method.epsilon.item() == epsilons[int(np.argmax(values))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "first"}, "layers must be one of 'last', 'all', got 'first'"),
        ({"combination": "mean"}, "combination must be one of 'equal', 'regression', got 'mean'"),
        ({"epsilon": [0.1, -0.1]}, "epsilon must be at least 0"),
        ({"min_jitter": -1.0}, "min_jitter must be finite"),
    ],
)
def test_senseless_arguments(small: FC, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mahalanobis(small, data_shape=[3], **arguments)


def test_all_layers_by_regression_from_a_finished_run(
    trained: Callable[[str], Trained], small_data: Callable[[str], Path], tmp_path: Path
) -> None:
    baseline = trained("fc_ce_baseline").run
    (results,) = run_points(
        compose_points(
            *quick_overrides("fc_mahalanobis", small_data("fc"), tmp_path),
            f"fixed.init_from={baseline.path}",
            "fixed.trainer_config.max_epochs=0",
            "fixed.val_ood_datasets=[uniform_noise]",
            "fixed.model_config.layers=all",
            "fixed.model_config.combination=regression",
            "fixed.model_config.epsilon=null",
        )
    )
    assert results["ood"]["between"]["Mahalanobis"]["AUROC"] > 90
    method = checkpoints.load(Path(results["run_dir"])).method
    assert isinstance(method, Mahalanobis) and method.weights.std() > 0
