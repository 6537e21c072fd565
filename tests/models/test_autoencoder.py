"""Autoencoder: the norm of what is not restored, its gradient, its sign, and how well it restores real digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from tests.conftest import Trained
from uncertainty_est.building import build_data
from uncertainty_est.errors import ConfigError
from uncertainty_est.metrics.ood import ood_metrics
from uncertainty_est.models.autoencoder import Autoencoder
from uncertainty_est.models.base import Method
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator


class Affine(Network):
    """Encoder without hidden layers, of tables with `dim` features."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return x


def affine_decoder(latent_dim: int, data_shape: Sequence[int]) -> nn.Module:
    return nn.Linear(latent_dim, data_shape[0])


def projection(directions: Tensor) -> Autoencoder:
    """Orthogonal projection onto the span of orthonormal rows ``directions: [latent_dim, D]``."""
    latent_dim, dim = directions.shape
    method = Autoencoder([dim], partial(Affine, dim), affine_decoder, latent_dim)
    with torch.no_grad():
        method.network.head.weight.copy_(directions)
        method.decoder.weight.copy_(directions.T)
        method.network.head.bias.zero_()
        method.decoder.bias.zero_()
    return method


def curve(n: int, seed: int) -> Tensor:
    """Points ``[n, 4]`` on a bent line with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    t = 3 * torch.rand(n, generator=generator) - 1.5
    points = torch.stack([t, t.square() - 1, t.sin(), -t], dim=1)
    return points + 0.02 * torch.randn(points.shape, generator=generator)


def fit(method: Method, x: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    method.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(method.loss({"id": (x, torch.zeros(len(x)))}).values())).sum().backward()
        optimizer.step()


def test_the_score_of_a_projection_is_the_distance_from_its_plane() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 5)).Q
    method = projection(basis[:2])
    x = torch.randn(30, 5)
    expected = (x @ basis[2:].T).square().sum(1).sqrt()
    torch.testing.assert_close(method.get_ood_scores(x)["Reconstruction"], -expected)
    parts = method.loss({"id": (x, torch.zeros(30))})
    assert list(parts) == ["rec"]
    torch.testing.assert_close(parts["rec"], expected.mean())  # of the norm, not of its square
    torch.testing.assert_close(method.validate_batch({"id": (x, torch.zeros(30))})[0]["rec"], expected.mean())


def test_where_all_is_restored_gradients_are_zero() -> None:
    method = projection(torch.eye(3))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss = method.loss({"id": (x, torch.zeros(4))})["rec"]
    loss.backward()
    assert loss == 0
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()  # zeros, and no NaN


def test_what_lies_off_the_data_is_not_restored() -> None:
    torch.manual_seed(0)
    make_network = partial(FC, [4], hidden_dims=[32, 32])
    method = Autoencoder([4], make_network, partial(FCGenerator, hidden_dims=[32, 32]), latent_dim=1)
    fit(method, curve(300, seed=0), steps=400)
    data, off = curve(500, seed=1), curve(500, seed=2)
    off = off + torch.tensor([0.0, 1.0, 0.0, 1.0])
    inside, outside = (method.get_ood_scores(x)["Reconstruction"] for x in (data, off))
    assert ood_metrics(inside, outside)["AUROC"] > 0.99


def test_scores_follow_their_inputs() -> None:
    torch.manual_seed(0)
    method = Autoencoder([4], partial(FC, [4]), FCGenerator)
    x, order = curve(20, seed=0), torch.randperm(20)
    first = method.get_ood_scores(x)["Reconstruction"]
    assert torch.equal(method.get_ood_scores(x)["Reconstruction"], first)
    torch.testing.assert_close(method.get_ood_scores(x[order])["Reconstruction"], first[order])
    assert method.predict(x).probs is None


@pytest.mark.parametrize(
    ("data_shape", "expected"), [([1], 1), ([2], 1), ([13], 3), ([18], 4), ([48], 6), ([1, 8, 8], 8), ([3, 32, 32], 55)]
)
def test_the_latent_vector_is_as_long_as_the_square_root_of_the_input(data_shape: list[int], expected: int) -> None:
    method = Autoencoder(data_shape, partial(FC, data_shape, hidden_dims=[4]), partial(FCGenerator, hidden_dims=[4]))
    assert method.latent_dim == method.network.head.out_features == method.decoder.latent_dim == expected


def test_a_finished_run_hands_over_encoder_and_decoder() -> None:
    def make(latent_dim: int = 2) -> Autoencoder:
        return Autoencoder([4], partial(FC, [4], hidden_dims=[8]), partial(FCGenerator, hidden_dims=[8]), latent_dim)

    x, done, fresh = curve(20, seed=0), make(), make()
    fresh.init_from([done.state_dict()])
    assert torch.equal(fresh.get_ood_scores(x)["Reconstruction"], done.get_ood_scores(x)["Reconstruction"])
    with pytest.raises(ConfigError, match="Autoencoder takes one run, got 2"):
        fresh.init_from([done.state_dict()] * 2)
    with pytest.raises(ConfigError, match=r"fixed\.init_from: the run's weights do not fit the network of Autoencoder"):
        make(3).init_from([done.state_dict()])
    classifier = {key: value for key, value in done.state_dict().items() if key.startswith("network.")}
    with pytest.raises(ConfigError, match=r"fixed\.init_from: the run's weights do not fit"):
        fresh.init_from([classifier])


def test_a_latent_vector_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        Autoencoder([4], partial(FC, [4]), FCGenerator, latent_dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["img_autoencoder"])  # a parameter, so that processes share trained models
def test_digits_are_restored_better_than_by_principal_components(model: str, trained: Callable[[str], Trained]) -> None:
    """The bar: as many principal components as latent numbers, the best that a linear map can do in squared error."""
    run = trained(model)
    method, data = run.run.method, build_data(run.fixed)
    assert isinstance(method, Autoencoder)
    data.setup("fit")
    data.setup("test")
    train = torch.cat([x for x, _ in data.plain_loader("train")])
    test = torch.cat([x for x, _ in data.id_test_loader()])

    pca = PCA(method.latent_dim).fit(train.flatten(1).numpy())
    flat = test.flatten(1).numpy()
    linear = np.linalg.norm(flat - pca.inverse_transform(pca.transform(flat)), axis=1).mean()
    mean_image = (test - train.mean(0)).flatten(1).norm(dim=1).mean().item()
    scores = method.get_ood_scores(test)["Reconstruction"]
    ours = -scores.mean().item()
    assert ours < 0.95 * linear
    assert ours < 0.5 * mean_image

    noise = torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ood_metrics(scores, method.get_ood_scores(noise)["Reconstruction"])["AUROC"] > 0.95
