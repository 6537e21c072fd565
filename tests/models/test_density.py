"""Density methods: marginal, class posterior, both losses, and the units of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from uncertainty_est.models.density import DensityMethod


class Gaussians(DensityMethod):
    """Independent normals with mean c for class c."""

    def __init__(self, data_shape: Sequence[int], num_classes: int = 1, discriminative: bool = True) -> None:
        super().__init__(data_shape, num_classes, discriminative)
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        means = torch.arange(self.num_classes) + self.shift
        return Normal(means, 1.0).log_prob(x.flatten(1).unsqueeze(-1)).sum(1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def test_one_density_has_no_classes(x: Tensor) -> None:
    prediction = Gaussians([2]).predict(x)
    assert prediction.probs is None
    torch.testing.assert_close(prediction.scores["p(x)"], Normal(0.0, 1.0).log_prob(x).sum(-1))


def test_class_densities_give_bayes_rule(x: Tensor) -> None:
    method = Gaussians([2], num_classes=3)
    log_p = torch.stack([Normal(float(c), 1.0).log_prob(x).sum(-1) for c in range(3)], -1)
    prediction = method.predict(x)
    torch.testing.assert_close(prediction.probs, log_p.exp() / log_p.exp().sum(-1, keepdim=True))
    torch.testing.assert_close(prediction.scores["p(x)"], log_p.exp().mean(-1).log())
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    assert method.loss({"id": (x, y)})["ce"].item() == pytest.approx(F.cross_entropy(log_p, y).item())
    generative = Gaussians([2], num_classes=3, discriminative=False)
    expected = -log_p.gather(1, y[:, None]).mean().item()
    assert generative.loss({"id": (x, y)})["nll"].item() == pytest.approx(expected)


def test_tables_show_nats_and_images_bits() -> None:
    scores = {"p(x)": np.array([-2.0, -4.0])}
    assert Gaussians([2]).quantities(scores)["NLL of x"].tolist() == [2, 4]
    bits = Gaussians([1, 2, 3]).quantities(scores)["Bits per dim"]
    assert bits == pytest.approx(np.array([2, 4]) / (6 * math.log(2)))


def test_autocast_does_not_reach_the_density(x: Tensor) -> None:
    method = Gaussians([2])
    exact = method.predict(x).scores["p(x)"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.predict(x).scores["p(x)"], exact)
        assert method.loss({"id": (x, torch.zeros(6))})["nll"].dtype == torch.float32


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        Gaussians([2], num_classes=0)


def test_a_method_that_cannot_sample_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Gaussians is no generative model"):
        Gaussians([2]).sample(1, torch.Generator())
