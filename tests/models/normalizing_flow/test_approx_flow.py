"""Flows of linear maps as methods: what they learn, what the approximate ones admit, samples and classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from uncertainty_est.densities.linear_flow import EXACT_KINDS, KINDS, LinearMaps
from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.normalizing_flow.approx_flow import ApproxFlow

APPROXIMATE = [kind for kind in KINDS if kind not in EXACT_KINDS]


def make(flow: str = "svd", **changes: Any) -> ApproxFlow:
    torch.manual_seed(0)
    return ApproxFlow([2], flow=flow, **{"num_layers": 8} | changes)


def clusters(n: int = 400) -> tuple[Tensor, Tensor]:
    """Two normals of deviation 0.3 about (-1, -1) and (1, 1); the entropy of their mixture is 1.12 nats."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(2, (n,), generator=generator)
    return 2.0 * y[:, None] - 1 + 0.3 * torch.randn(n, 2, generator=generator), y


def train(method: ApproxFlow, x: Tensor, y: Tensor, steps: int = 200, weight_decay: float = 0.0) -> None:
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2, weight_decay=weight_decay)
    method.train()
    for _ in range(steps):
        loss = torch.stack(list(method.loss({"id": (x, y)}).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()


@pytest.mark.parametrize("flow", EXACT_KINDS)
def test_exact_flows_learn_two_clusters_with_a_mass_of_one(flow: str) -> None:
    x, y = clusters()
    method = make(flow)
    train(method, x, y, weight_decay=0.01)  # which orthogonal factors must bear
    nll = -method.predict(x).scores["p(x)"].mean()
    assert 1.0 < nll < 1.6  # a single Gaussian has 1.94
    side = torch.linspace(-8, 8, 801)
    density = method.predict(torch.cartesian_prod(side, side)).scores["p(x)"].double().exp()
    assert (density.sum() * (side[1] - side[0]) ** 2).item() == pytest.approx(1, abs=1e-2)
    between, on = method.predict(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).scores["p(x)"].tolist()
    assert on > between + 1


@pytest.mark.parametrize("flow", KINDS)
def test_only_approximate_flows_have_a_penalty_and_no_unit_of_a_density(flow: str) -> None:
    x, y = clusters(8)
    method = make(flow)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1)
    parts = method.loss({"id": (x, y)})
    scores = {"p(x)": np.array([1.0, -2.0])}
    if flow in EXACT_KINDS:
        assert list(parts) == ["nll"]
        assert list(method.quantities(scores)) == ["NLL of x"]
    else:
        assert list(parts) == ["nll", "orthogonality"]
        (maps,) = (m for m in method.modules() if isinstance(m, LinearMaps))
        torch.testing.assert_close(parts["orthogonality"], 100 * maps.penalty())
        quantities = method.quantities(scores)
        assert list(quantities) == ["NLL of x (not normalised)"]
        np.testing.assert_array_equal(quantities["NLL of x (not normalised)"], [-1.0, 2.0])


@pytest.mark.parametrize("flow", APPROXIMATE)
def test_a_large_penalty_keeps_an_approximation_near_to_a_density_and_a_small_one_does_not(flow: str) -> None:
    """The bound is 8 sqrt 2 / 2 = 5.7. Below it, the likelihood rises above every density's: the entropy is 1.12."""
    x, y = clusters()
    for weight, honest in ((100.0, True), (1.0, False)):
        method = make(flow, penalty_weight=weight)
        train(method, x, y, 100)
        nll = -method.predict(x).scores["p(x)"].mean()
        (maps,) = (m for m in method.modules() if isinstance(m, LinearMaps))
        assert bool(nll > 1.0) == honest
        assert bool(maps.penalty() < 0.05) == honest


def test_one_density_for_each_class_tells_the_classes_apart() -> None:
    x, y = clusters()
    method = make(num_classes=2, discriminative=False, num_layers=3)
    train(method, x, y, 100)
    prediction = method.predict(x)
    assert prediction.probs is not None
    assert (prediction.probs.argmax(-1) == y).float().mean() > 0.98


@pytest.mark.parametrize("flow", KINDS)
def test_samples_come_from_the_generator_alone_and_have_the_datas_moments(flow: str) -> None:
    x, y = clusters()
    method = make(flow)
    train(method, x, y, 100)
    before = torch.random.get_rng_state()
    with scoring_mode(method):
        samples = method.sample(4000, torch.Generator().manual_seed(0))
        assert torch.equal(samples, method.sample(4000, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), before)
    if flow == "orthogonal":  # without scales and shifts it does not fit these data
        return
    torch.testing.assert_close(samples.mean(0), x.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(samples.T.cov(), x.T.cov(), atol=0.3, rtol=0)


def test_the_thesis_bend_cannot_be_sampled() -> None:
    assert make().can_sample
    assert not make(negative_slope=0.0, learn_slope=False).can_sample


def test_tables_of_any_shape_are_flattened() -> None:
    method = ApproxFlow([1, 2, 3], num_layers=2)
    assert method.predict(torch.randn(5, 1, 2, 3)).scores["p(x)"].shape == (5,)
    with scoring_mode(method):
        assert method.sample(4, torch.Generator().manual_seed(0)).shape == (4, 1, 2, 3)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="^flow must be one of 'svd'"):
        make("qr")
    with pytest.raises(ValueError, match="^penalty_weight must be finite and at least 0, got -1.0$"):
        make(penalty_weight=-1.0)
