"""Chains of residual blocks: Jacobian, inverse, total mass, samples, and norms that training keeps below one."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.densities.actnorm import ActNorm
from uncertainty_est.densities.bijection import Bijection, Squeeze
from uncertainty_est.densities.image_flow import Stage
from uncertainty_est.densities.iresnet import residual_bijections
from uncertainty_est.densities.normal_flow import NormalFlow
from uncertainty_est.densities.residual_block import InvertibleResidual, contraction
from uncertainty_est.densities.residual_log_det import LogDet
from uncertainty_est.networks.lipschitz import SpectralConv2d, SpectralLayers, SpectralLinear


def make(shape: tuple[int, ...], blocks: int = 4, training: str = "exact", **changes: Any) -> list[Bijection]:
    torch.manual_seed(0)
    layers = SpectralLayers(0.9, 5)
    return residual_bijections(
        shape,
        lambda s: contraction(s, [8], layers),
        lambda s, number: LogDet(s, training, "exact", seed=number),
        blocks,
        **changes,
    )


def clusters(n: int, shape: tuple[int, ...] = (2,)) -> Tensor:
    """Two clusters about -1 and 1."""
    generator = torch.Generator().manual_seed(2)
    sign = torch.randint(2, (n, *[1] * len(shape)), generator=generator) * 2.0 - 1
    return sign + 0.3 * torch.randn(n, *shape, generator=generator)


@functools.cache
def fitted(steps: int, training: str = "exact", blocks: int = 6) -> NormalFlow:
    """Trained on :func:`clusters`, in eval mode."""
    flow = NormalFlow((2,), make((2,), blocks, training))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    x = clusters(256)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
    return flow.eval()


def bounded_norms(module: nn.Module) -> Tensor:
    """The true norms of all layers as they are applied, by singular values of explicit matrices."""
    norms = []
    for layer in module.modules():
        if isinstance(layer, SpectralConv2d):
            pixels = torch.eye(layer.v.numel()).view(-1, *layer.v.shape[1:])
            matrix = nn.functional.conv2d(pixels, layer.bounded_weight(), None, layer.stride, layer.padding).flatten(1)
            norms.append(torch.linalg.matrix_norm(matrix, 2))
        elif isinstance(layer, SpectralLinear):
            norms.append(torch.linalg.matrix_norm(layer.bounded_weight(), 2))
    return torch.stack(norms).detach()


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((3,), {}),
        ((1, 4, 4), {"num_scales": 2}),
        ((1, 4, 4), {"squeeze_first": True}),
        ((1, 4, 4), {"num_scales": 2, "squeeze_first": True}),
    ],
)
def test_log_determinant_and_inverse(shape: tuple[int, ...], changes: dict[str, Any]) -> None:
    chain = Stage(make(shape, 2, **changes)).double().train()
    chain(clusters(64, shape).double())
    chain.eval()
    for block in chain.modules():
        if isinstance(block, InvertibleResidual):
            block.tolerance = 1e-12
    x, dim = clusters(3, shape).double(), math.prod(shape)
    z, log_det = chain(x)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: chain(v[None])[0][0], x[i]).reshape(dim, dim)
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet)
    with torch.no_grad():
        torch.testing.assert_close(chain.inverse(z), x, atol=1e-9, rtol=0)
        noise = torch.randn_like(z)
        torch.testing.assert_close(chain(chain.inverse(noise))[0], noise, atol=1e-9, rtol=0)


def test_an_activation_normalisation_stands_before_each_block_and_squeezes_between_scales() -> None:
    kinds = [type(b) for b in make((1, 8, 8), 2, num_scales=2)]
    block = [ActNorm, InvertibleResidual]
    assert kinds == [*block, *block, Squeeze, *block, *block]
    kinds = [type(b) for b in make((1, 8, 8), 1, num_scales=2, squeeze_first=True)]
    assert kinds == [Squeeze, *block, Squeeze, *block]


def test_with_weights_of_zero_it_is_the_standard_normal() -> None:
    flow = NormalFlow((3,), make((3,))).double().eval()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if ".residual." in name:
                parameter.zero_()
    x = 2 * torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1))


@pytest.mark.parametrize("training", ["exact", "roulette"])
def test_a_trained_density_has_a_mass_of_one_and_knows_the_clusters(training: str) -> None:
    flow = fitted(150, training)
    side = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        log_p = flow.log_prob(grid)
    mass = log_p.double().exp().sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)
    between, on = flow.log_prob(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist()
    assert on > between + 1


def test_samples_are_where_the_density_is() -> None:
    flow = fitted(150, "exact")
    samples = flow.sample(4000, torch.Generator().manual_seed(0))
    assert torch.equal(samples, flow.sample(4000, torch.Generator().manual_seed(0)))
    # The mean of -ln p over samples is the entropy, which a grid knows as well.
    side = torch.linspace(-8, 8, 161)
    with torch.no_grad():
        log_p = flow.log_prob(torch.cartesian_prod(side, side)).double()
        entropy = -(log_p.exp() * log_p).sum() * (side[1] - side[0]) ** 2
        drawn = -flow.log_prob(samples)
    assert abs(drawn.mean() - entropy) < 4 * drawn.std() / math.sqrt(len(samples))


def test_the_order_of_a_batch_does_not_matter() -> None:
    flow, x = fitted(20), clusters(50)
    order = torch.randperm(50)
    torch.testing.assert_close(flow.log_prob(x[order]), flow.log_prob(x)[order])


def test_true_norms_stay_below_one_while_training() -> None:
    flow = fitted(100)
    norms = bounded_norms(flow)
    assert len(norms) == 12
    assert norms.max() > 0.89  # the bound is in force
    assert norms.max() < 0.93


def test_true_norms_of_convolutions_stay_below_one_while_training() -> None:
    chain = Stage(make((1, 4, 4), 2, "roulette", num_scales=2))
    optimizer = torch.optim.Adam(chain.parameters(), 1e-2)
    x = clusters(64, (1, 4, 4))
    for _ in range(60):
        z, log_det = chain(x)
        optimizer.zero_grad()
        (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
        optimizer.step()
    norms = bounded_norms(chain.eval())
    assert norms.max() > 0.89
    assert norms.max() < 0.95


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_scales 3 needs images of sides divisible by 4, got shape \[1, 6, 8\]$"):
        make((1, 6, 8), num_scales=3)
    with pytest.raises(ValueError, match=r"^num_scales 2 needs images of sides divisible by 2, got shape \[4\]$"):
        make((4,), num_scales=2)
    with pytest.raises(ValueError, match="^blocks_per_scale must be at least 1, got 0$"):
        make((4,), 0)
