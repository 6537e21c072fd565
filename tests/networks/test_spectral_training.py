"""Spectral normalisation in whole networks: the norms that layers apply after training, against singular values."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.test_networks import CLASSES, NAMES, build
from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.layers import Layers
from uncertainty_est.networks.lipschitz import SpectralConv2d, SpectralLayers, SpectralNorm

COEFF = 0.5
# Sides of the largest explicit matrix; only networks of larger maps are left out.
LARGEST = 1100
STEPS = 40


class Sides(Layers):
    """Makes plain layers, and notes the longer side of the matrix of each."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, **more: Any) -> nn.Conv2d:
        conv = super().conv(in_channels, out_channels, kernel_size, **more)
        size = more["input_size"]
        out = [(n + 2 * more.get("padding", 0) - kernel_size) // more.get("stride", 1) + 1 for n in size]
        pixels = (1, 1) if kernel_size == 1 else (math.prod(size), math.prod(out))
        self.found.append(max(in_channels * pixels[0], out_channels * pixels[1]))
        return conv

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
        self.found.append(max(in_features, out_features))
        return super().linear(in_features, out_features, bias)


@functools.cache
def smallest_image(name: str) -> int | None:
    """Of a network whose matrices can all be written down there; ``None`` of any other."""
    for size in (4, 8, 12, 17):
        sides = Sides()
        try:
            with torch.device("meta"):
                make(name, size, sides)
        except ConfigError:
            continue
        return size if max(sides.found) <= LARGEST and len(sides.found) < 30 else None
    return None


def make(name: str, size: int, layers: Layers) -> Network:
    changes = {"width": 3} if name == "vgg16" else {}
    return build(name, [1, size, size], layers=layers, mod=True, **changes)


def small(name: str) -> tuple[Network, Tensor]:
    """A network with spectral layers and a batch for it."""
    size = smallest_image(name)
    assert size is not None
    network = make(name, size, SpectralLayers(COEFF))
    return network, torch.randn(64, 1, size, size)


def spectral(network: nn.Module) -> list[SpectralNorm]:
    return [module for module in network.modules() if isinstance(module, SpectralNorm)]


def applied_norm(layer: SpectralNorm) -> float:
    """Largest singular value of the map that a layer applies in evaluation mode."""
    return norm_of(layer, layer.bounded_weight())


def norm_of(layer: SpectralNorm, weight: Tensor) -> float:
    matrix = weight.flatten(1)
    if isinstance(layer, SpectralConv2d):
        pixels = torch.eye(layer.v.numel(), dtype=weight.dtype).view(-1, *layer.v.shape[1:])
        matrix = F.conv2d(pixels, weight, None, layer.stride, layer.padding).flatten(1)
    return float(torch.linalg.matrix_norm(matrix, 2))


WRITTEN_DOWN = [name for name in NAMES if smallest_image(name) is not None]


def test_the_usual_networks_are_among_them() -> None:
    assert {"fc", "fc_residual", "lenet", "lenet_wide", "wrn_10_1", "vgg16"} <= set(WRITTEN_DOWN)


@pytest.mark.parametrize("name", WRITTEN_DOWN)
def test_every_layer_keeps_to_the_coefficient_while_it_learns(name: str) -> None:
    network, x = small(name)
    y = torch.arange(64) % CLASSES
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network(x)  # the norms of the weights as they are now
    network.eval()
    with torch.no_grad():
        raw = [norm_of(layer, layer.weight) for layer in spectral(network)]
        applied = [applied_norm(layer) for layer in spectral(network)]
        assert max(applied) <= COEFF * 1.1, [f"{norm:.3f}" for norm in applied]
        assert sum(norm > COEFF * 1.2 for norm in raw) > len(raw) / 2, "the bound has nothing to do"
        before = copy.deepcopy(network.state_dict())
        first, again = network(x), network(x)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        # One iteration in a step follows the weights with a delay; once they rest it arrives.
        for layer in spectral(network):
            layer.power_iterate(300)
        settled = [applied_norm(layer) for layer in spectral(network)]
        assert max(settled) <= COEFF * 1.01, [f"{norm:.3f}" for norm in settled]
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["wrn_10_1", "vgg16"])
def test_batch_normalisation_is_left_alone(name: str) -> None:
    network, x = small(name)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(type(norm) is nn.BatchNorm2d for norm in norms)
    network.eval()
    with torch.no_grad():
        before = network.features(x)
        for parameter in norms[-1].parameters():
            parameter.mul_(100)  # far above the coefficient, and in effect
        after = network.features(x)
    torch.testing.assert_close(after, 100 * before, rtol=1e-3, atol=1e-3)
