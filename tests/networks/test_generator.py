"""Generators: sizes, ranges, initialisation and what a residual block adds to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.generator import FCGenerator, ResNetGenerator

SIZES = [
    # data_shape, sizes of the maps from first to last
    ([1, 8, 8], [(4, 4), (8, 8)]),
    ([1, 28, 28], [(7, 7), (14, 14), (28, 28)]),
    ([3, 32, 32], [(4, 4), (8, 8), (16, 16), (32, 32)]),
    ([2, 17, 17], [(5, 5), (9, 9), (17, 17)]),
    ([1, 9, 20], [(5, 10), (9, 20)]),
    ([1, 7, 7], [(7, 7)]),
    ([1, 2, 3], [(2, 3)]),
]


def latent(batch: int = 6, dim: int = 5) -> Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("data_shape", "sizes"), SIZES)
def test_images_of_any_size_grow_from_a_small_map(data_shape: list[int], sizes: list[tuple[int, int]]) -> None:
    generator = ResNetGenerator(5, data_shape, features=6)
    seen = []
    for module in [generator.unflatten, *generator.blocks]:
        module.register_forward_hook(lambda _module, _input, output: seen.append(tuple(output.shape[1:])))
    assert generator(latent()).shape == (6, *data_shape)
    assert seen == [(6, *size) for size in sizes]


@pytest.mark.parametrize("data_shape", [[7], [2, 3], [1, 4, 4]])
def test_fully_connected_generators_make_any_shape(data_shape: list[int]) -> None:
    generator = FCGenerator(5, data_shape, hidden_dims=[8, 8])
    assert generator(latent()).shape == (6, *data_shape)
    assert generator.latent_dim == 5


@pytest.mark.parametrize("make", [FCGenerator, ResNetGenerator])
@pytest.mark.parametrize(("output", "low", "high"), [("tanh", -1.0, 1.0), ("sigmoid", 0.0, 1.0)])
def test_the_output_has_the_range_that_was_asked_for(
    make: type[nn.Module], output: str, low: float, high: float
) -> None:
    torch.manual_seed(0)
    bounded = make(5, [1, 8, 8], output=output)
    unbounded = make(5, [1, 8, 8], output="identity")
    unbounded.load_state_dict(bounded.state_dict())
    z = 1e3 * latent()
    bounded.eval()
    unbounded.eval()
    with torch.no_grad():
        images, raw = bounded(z), unbounded(z)
    assert images.min() >= low
    assert images.max() <= high
    assert raw.abs().max() > 1
    torch.testing.assert_close(images, raw.tanh() if output == "tanh" else raw.sigmoid())


def test_a_block_adds_to_the_map_made_twice_as_large() -> None:
    generator = ResNetGenerator(5, [1, 9, 20], features=6)
    (block,) = generator.blocks
    nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 6, 5, 10)
    expected = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, :9]
    torch.testing.assert_close(block(x), expected)


def test_a_block_normalises_activates_doubles_and_convolves_twice() -> None:
    torch.manual_seed(0)
    block = ResNetGenerator(5, [1, 8, 8], features=6).blocks[0].eval()
    first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    before, between = (m for m in block.modules() if isinstance(m, nn.BatchNorm2d))
    for norm in (before, between):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def double(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(8, 8), mode="nearest")

    x = torch.randn(2, 6, 4, 4)
    body = second(between(first(double(before(x).relu()))).relu())
    torch.testing.assert_close(block(x), double(x) + body)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_weights_start_from_xaviers_distribution(batch_norm: bool) -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(128, [3, 32, 32], features=64, batch_norm=batch_norm)
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            receptive = module.weight[0, 0].numel()
            fans = receptive * (module.weight.shape[0] + module.weight.shape[1])
            gain = 1.0 if isinstance(module, nn.Linear) else math.sqrt(2)
            bound = gain * math.sqrt(6 / fans)
            assert 0.98 * bound < module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert module.bias is not None
            assert not module.bias.any()
    assert any(isinstance(m, nn.BatchNorm2d) for m in generator.modules()) is batch_norm


def test_without_normalisation_the_batch_does_not_matter() -> None:
    torch.manual_seed(0)
    z = latent()
    for make in (FCGenerator, ResNetGenerator):
        generator = make(5, [1, 8, 8], batch_norm=False).train()
        torch.testing.assert_close(generator(z)[:2], generator(z[:2]))
        assert not torch.allclose(generator(z)[0], generator(z)[1])


@pytest.mark.parametrize("batch_norm", [True, False])
def test_normalisation_replaces_the_biases_of_hidden_layers(batch_norm: bool) -> None:
    generator = FCGenerator(5, [7], hidden_dims=[8, 8], batch_norm=batch_norm)
    *hidden, last = (m for m in generator.modules() if isinstance(m, nn.Linear))
    assert len(hidden) == sum(isinstance(m, nn.BatchNorm1d) for m in generator.modules()) + 2 * (not batch_norm)
    assert all((m.bias is None) is batch_norm for m in hidden)
    assert last.bias is not None


@pytest.mark.parametrize("generator", [FCGenerator(5, [7]), ResNetGenerator(5, [2, 17, 17], features=6)])
def test_every_weight_learns(generator: nn.Module) -> None:
    generator(latent()).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".body.0.bias" in name, name  # normalisation takes that bias out again


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output must be one of 'tanh', 'sigmoid', 'identity', got 'relu'"):
        ResNetGenerator(5, [1, 8, 8], output="relu")
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        FCGenerator(0, [7])
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        ResNetGenerator(5, [1, 8, 8], features=0)
    with pytest.raises(ConfigError, match=r"ResNetGenerator needs images \[channels, height, width\]"):
        ResNetGenerator(5, [13])
    with pytest.raises(ConfigError, match=r"FCGenerator makes inputs of at least one number, got data_shape \[\]"):
        FCGenerator(5, [])
