"""What is particular to each architecture: published sizes, shapes on the way, blocks computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.densenet import DenseNetBC
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.layers import ACTIVATIONS, PooledShortcut, make_activation, strided
from uncertainty_est.networks.lenet import LeNet
from uncertainty_est.networks.lipschitz import SpectralConv2d, SpectralLayers
from uncertainty_est.networks.resnet import ResNet
from uncertainty_est.networks.vgg import VGG16
from uncertainty_est.networks.wide_resnet import WideResNet

CIFAR = [3, 32, 32]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Sums over the papers' layer tables, for ten classes; the first three are the 36.5, 11.0 and 2.7 million that
# the paper on wide networks reports.
@pytest.mark.parametrize(
    ("make", "parameters", "feature_dim"),
    [
        (lambda: WideResNet(CIFAR, 10, 28, 10), 36_479_194, 640),
        (lambda: WideResNet(CIFAR, 10, 16, 8), 10_961_370, 512),
        (lambda: WideResNet(CIFAR, 10, 16, 4), 2_748_890, 256),
        (lambda: WideResNet(CIFAR, 10, 10, 1), 77_850, 64),
        (lambda: ResNet(CIFAR, 10, 18), 11_173_962, 512),
        (lambda: ResNet(CIFAR, 10, 34), 21_282_122, 512),
        (lambda: ResNet(CIFAR, 10, 50), 23_520_842, 2048),
        (lambda: ResNet([3, 224, 224], 1000, 18), 11_689_512, 512),  # as published, like the next
        (lambda: ResNet([3, 224, 224], 1000, 50), 25_557_032, 2048),
        (lambda: VGG16(CIFAR, 10), 14_728_266, 512),
        (lambda: VGG16(CIFAR, 10, width=8), 232_274, 64),
        (lambda: DenseNetBC(CIFAR, 10), 769_162, 342),
        (lambda: DenseNetBC(CIFAR, 100), 800_032, 342),
        (lambda: LeNet([1, 28, 28], 10), 61_706, 84),
        (lambda: LeNet([1, 28, 28], 10, [32, 64], [1024], pad_second=True), 3_274_634, 1024),
        (lambda: FC([18], 7), 19 * 100 + 4 * 101 * 100 + 101 * 7, 100),
        (lambda: FC([2], 2, [128] * 4, residual=True), 3 * 128 + 4 * 129 * 128 + 129 * 2, 128),
    ],
)
def test_published_sizes(make: Callable[[], Any], parameters: int, feature_dim: int) -> None:
    with torch.device("meta"):
        network = make()
    assert count(network) == parameters
    assert network.feature_dim == feature_dim


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 4), (28, 10)])
def test_size_of_a_wide_network_follows_from_depth_and_factor(depth: int, factor: int) -> None:
    n = (depth - 4) // 6
    total, c = 27 * 16, 16
    for out in (16 * factor, 32 * factor, 64 * factor):
        shortcut = c * out if c != out or out > 16 * factor else 0
        total += 2 * c + 2 * out + 9 * c * out + 9 * out * out + shortcut
        total += (n - 1) * (4 * out + 18 * out * out)
        c = out
    with torch.device("meta"):
        assert count(WideResNet(CIFAR, 10, depth, factor)) == total + 2 * c + 10 * c + 10


# ------------------------------------------------------------------------------------------------ shortcut


def test_pooled_shortcut_has_no_weights_and_preserves_channel_means() -> None:
    shortcut = PooledShortcut(3, 5, 2, (8, 6))
    x = torch.randn(4, 3, 8, 6, dtype=torch.float64)
    y = shortcut(x)
    assert not list(shortcut.parameters()) and not list(shortcut.buffers())
    assert y.shape == (4, 5, 4, 3)
    torch.testing.assert_close(y[:, :3].mean((2, 3)), x.mean((2, 3)))
    assert (y[:, 3:] == 0).all()


def test_pooled_shortcut_subsamples_odd_sizes() -> None:
    x = torch.randn(2, 3, 7, 8)
    y = PooledShortcut(3, 3, 2, (7, 8))(x)
    torch.testing.assert_close(y, (x[:, :, ::2, 0::2] + x[:, :, ::2, 1::2]) / 2)


def test_pooled_shortcut_at_stride_one_only_pads() -> None:
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(PooledShortcut(3, 4, 1, (5, 5))(x)[:, :3], x)


def test_pooled_shortcut_cannot_drop_channels() -> None:
    with pytest.raises(ValueError, match="out_channels must be at least in_channels, 4, got 3"):
        PooledShortcut(4, 3, 1, (8, 8))


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (1, 4)])
def test_strided_is_the_size_after_a_padded_convolution(size: tuple[int, int]) -> None:
    x = torch.zeros(1, 1, *size)
    assert F.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1).shape[2:] == strided(size, 2)
    assert F.conv2d(x, torch.zeros(1, 1, 1, 1), stride=2).shape[2:] == strided(size, 2)


@pytest.mark.parametrize("make", [lambda m: ResNet(CIFAR, 10, mod=m), lambda m: WideResNet(CIFAR, 10, 16, 2, mod=m)])
def test_mod_replaces_the_learned_shortcuts(make: Callable[[bool], Any]) -> None:
    def learned(network: Network) -> int:
        return sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in network.modules())

    with torch.device("meta"):
        plain, mod = make(False), make(True)
    assert learned(plain) == 3
    assert learned(mod) == 0
    assert sum(isinstance(m, PooledShortcut) for m in mod.modules()) == 3


# ---------------------------------------------------------------------------------------------- activations


def test_mod_replaces_relu_only() -> None:
    x = torch.linspace(-2, 2, 9)
    for name in ACTIVATIONS:
        expected = "leaky_relu" if name == "relu" else name
        assert torch.equal(make_activation(name, mod=True)(x), make_activation(expected)(x))
    assert make_activation("leaky_relu", negative_slope=0.2)(torch.tensor(-1.0)) == pytest.approx(-0.2)
    assert make_activation("relu")(torch.tensor(-1.0)) == 0


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of 'relu', .*, got 'rleu'"):
        make_activation("rleu")


# ------------------------------------------------------------------------------------------------------- fc


def test_plain_fc_by_hand() -> None:
    network: Any = FC([2, 3], 4, [5, 7], activation="leaky_relu", negative_slope=0.2)
    first, second = network.blocks[0][0], network.blocks[1][0]
    x = torch.randn(8, 2, 3)
    h = F.leaky_relu(second(F.leaky_relu(first(x.flatten(1)), 0.2)), 0.2)
    torch.testing.assert_close(network(x), network.head(h))


def test_residual_fc_by_hand() -> None:
    network: Any = FC([2], 4, [5, 5], activation="relu", residual=True, mod=True)
    x = torch.randn(8, 2)
    h = network.stem(x)
    for block in network.blocks:
        h = h + F.leaky_relu(block[0](h), 0.01)
    torch.testing.assert_close(network.features(x), h)


def test_fc_normalises_before_the_activation() -> None:
    network: Any = FC([2], 4, [5], activation="relu", batch_norm=True)
    x = torch.randn(64, 2) * 3 + 1
    linear = network.blocks[0][0]
    z = linear(x)
    assert linear.bias is None  # the normalisation has one
    standardised = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(network.features(x), standardised.relu())


def test_fc_without_hidden_layers_is_linear() -> None:
    network = FC([2, 2], 3, [])
    x = torch.randn(5, 2, 2)
    assert torch.equal(network.features(x), x.flatten(1))


@pytest.mark.parametrize("widths", [[128, 64], []])
def test_residual_fc_needs_equal_widths(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="hidden_dims must be equal widths with residual=True, got"):
        FC([2], 2, widths, residual=True)


@pytest.mark.parametrize("shape", [[], [0]])
def test_fc_refuses_an_empty_input(shape: list[int]) -> None:
    with pytest.raises(ConfigError, match="network fc needs inputs of at least one number, got data_shape"):
        FC(shape, 2)


# --------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("size", "maps"), [((28, 28), (5, 5)), ((12, 12), (1, 1)), ((32, 13), (6, 1))])
def test_lenet_adapts_to_the_image(size: tuple[int, int], maps: tuple[int, int]) -> None:
    network = LeNet([1, *size], 10)
    assert network(torch.randn(2, 1, *size)).shape == (2, 10)
    assert [m.in_features for m in network.modules() if isinstance(m, nn.Linear)][0] == 16 * math.prod(maps)


@pytest.mark.parametrize(("size", "maps"), [((28, 28), (7, 7)), ((8, 8), (2, 2)), ((4, 13), (1, 3))])
def test_a_wide_lenet_keeps_the_border_and_takes_small_images(size: tuple[int, int], maps: tuple[int, int]) -> None:
    network = LeNet([1, *size], 10, channels=[32, 64], hidden_dims=[20], pad_second=True)
    assert network(torch.randn(2, 1, *size)).shape == (2, 10)
    assert [m.in_features for m in network.modules() if isinstance(m, nn.Linear)][0] == 64 * math.prod(maps)


@pytest.mark.parametrize("widths", [{"channels": [6]}, {"hidden_dims": []}])
def test_lenet_has_two_convolutions_and_a_hidden_layer(widths: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="channels must be two numbers and hidden_dims at least one"):
        LeNet([1, 28, 28], 10, **widths)  # type: ignore[arg-type]


def test_lenet_features_are_rectified() -> None:
    x = torch.randn(4, 1, 12, 12)
    assert (LeNet([1, 12, 12], 10).features(x) >= 0).all()
    assert (LeNet([1, 12, 12], 10, mod=True).features(x) < 0).any()


@pytest.mark.parametrize("depth", [18, 50])
def test_large_residual_networks_are_torchvisions(depth: int) -> None:
    """Its weights, which come in the same order, give the same logits."""
    theirs = getattr(models, f"resnet{depth}")(num_classes=7)
    ours = ResNet([3, 96, 64], 7, depth, stem="large")
    x = torch.randn(2, 3, 96, 64)
    theirs.train()(x)  # so that statistics differ from channel to channel
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stem", "is_large"),
    [
        ((128, 128), "auto", True),
        ((127, 300), "auto", False),
        ((224, 224), "small", False),
        ((32, 32), "large", True),
    ],
)
def test_the_stem_for_large_images_begins_at_128_pixels(size: tuple[int, int], stem: str, is_large: bool) -> None:
    with torch.device("meta"):
        network = ResNet([3, *size], 10, stem=stem)
    assert any(isinstance(module, nn.MaxPool2d) for module in network.modules()) == is_large


def test_a_large_stem_is_made_of_the_layers_given() -> None:
    network = ResNet([1, 33, 40], 3, stem="large", mod=True, layers=SpectralLayers(coeff=1.0)).eval()
    first: Any = network.stem[0]
    assert isinstance(first, SpectralConv2d) and first.kernel_size == (7, 7)
    with torch.no_grad():
        assert [f.shape[1] for f in network.stage_features(torch.randn(2, 1, 33, 40))] == [64, 128, 256, 512]


def test_a_large_stem_needs_32_pixels() -> None:
    with pytest.raises(ConfigError, match="network resnet with stem=large needs images of at least 32x32, got"):
        ResNet([3, 32, 31], 10, stem="large")
    with pytest.raises(ValueError, match="stem must be 'auto', 'small' or 'large', got 'big'"):
        ResNet(CIFAR, 10, stem="big")


def test_a_wide_block_adds_to_its_raw_input_and_without_norms_to_its_activated_input() -> None:
    h = torch.randn(2, 16, 8, 8)
    for norm, expected in (("batch", h), ("none", h.relu())):
        block: Any = WideResNet([1, 8, 8], 10, 10, 1, norm=norm).blocks[0]
        last = block.body[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        torch.testing.assert_close(block(h), expected)


@pytest.mark.parametrize(
    "make", [lambda **k: WideResNet([1, 8, 8], 10, 10, 2, **k), lambda **k: ResNet([1, 8, 8], 10, **k)]
)
def test_residual_networks_without_norms_couple_no_samples(make: Callable[..., Network]) -> None:
    network = make(norm="none", activation="leaky_relu", negative_slope=0.2).train()
    assert not list(network.buffers())
    assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert all(m.bias is not None and (m.bias == 0).all() for m in network.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


def test_wide_network_starts_from_the_stated_distributions() -> None:
    torch.manual_seed(0)
    for norm in ("batch", "none"):
        network = WideResNet([1, 8, 8], 10, 10, 4, norm=norm)
        block: Any = network.blocks[-1]
        weight = block.body[-1].weight
        # 256 channels in and out: both have variance 2 / (9 * 256); kurtosis 3 is normal's, 1.8 uniform's.
        assert weight.std().item() == pytest.approx((2 / 2304) ** 0.5, rel=0.01)
        kurtosis = (weight**4).mean() / weight.var() ** 2
        assert kurtosis.item() == pytest.approx(3.0 if norm == "batch" else 1.8, abs=0.05)


def test_batch_norm_momentum_is_passed_on() -> None:
    network = WideResNet([1, 8, 8], 10, 10, 1, bn_momentum=0.01)
    momenta = {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.01}


@pytest.mark.parametrize("make", [lambda: ResNet(CIFAR, 10), lambda: WideResNet(CIFAR, 10, 16, 2)])
def test_residual_networks_end_at_the_published_resolution(make: Callable[[], Any]) -> None:
    network = make().eval()
    sizes: list[tuple[int, ...]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    network(torch.randn(1, *CIFAR))
    expected = [32, 32, 16, 16, 8, 8, 4, 4] if isinstance(network, ResNet) else [32, 32, 16, 16, 8, 8]
    assert sizes == [(n, n) for n in expected]


def test_a_dense_layer_hands_on_what_it_received_and_appends_its_own() -> None:
    network = DenseNetBC([1, 8, 8], 10, depth=10, growth=4).eval()
    layer: Any = network.blocks[0][0]  # type: ignore[index]
    x = torch.randn(2, 8, 8, 8)
    y = layer(x)
    assert torch.equal(y[:, :8], x)
    norm1, act, conv1, _, norm2, _, conv3, _ = layer
    torch.testing.assert_close(y[:, 8:], conv3(act(norm2(conv1(act(norm1(x)))))))


@pytest.mark.parametrize(("depth", "growth"), [(10, 4), (16, 3), (100, 12)])
def test_size_of_a_dense_network_follows_from_depth_and_growth(depth: int, growth: int) -> None:
    c, total = 2 * growth, 27 * 2 * growth
    for block in range(3):
        if block:
            total, c = total + 2 * c + c * (c // 2), c // 2
        for _ in range((depth - 4) // 6):
            total += 2 * c + 4 * growth * c + 8 * growth + 9 * 4 * growth * growth
            c += growth
    with torch.device("meta"):
        network = DenseNetBC(CIFAR, 10, depth, growth)
    assert network.feature_dim == c
    assert count(network) == total + 2 * c + 10 * c + 10


def test_a_dense_network_pools_odd_sizes_without_losing_their_border() -> None:
    network = DenseNetBC([1, 7, 10], 3, depth=10, growth=4, mod=True).eval()
    maps: list[tuple[int, ...]] = []
    for stage in network.blocks:
        stage.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape[2:])))
    x = torch.zeros(1, 1, 7, 10)
    assert network(x).shape == (1, 3)
    assert maps == [(7, 10), (4, 5), (4, 5), (2, 3), (2, 3)]
    x[..., -1, -1] = 1
    assert not torch.equal(network(x), network(torch.zeros_like(x)))


@pytest.mark.parametrize("depth", [9, 4, 15])
def test_an_impossible_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be one of 10, 16, 22, 28, ... \(6n \+ 4\), got {depth}"):
        WideResNet(CIFAR, 10, depth)
    with pytest.raises(ValueError, match=f"depth must be one of 18, 34, 50, got {depth}"):
        ResNet(CIFAR, 10, depth)
    with pytest.raises(ValueError, match=rf"depth must be one of 10, 16, 22, 28, ... \(6n \+ 4\), got {depth}"):
        DenseNetBC(CIFAR, 10, depth)


def test_a_dense_network_without_growth_is_refused() -> None:
    with pytest.raises(ValueError, match="growth must be at least 1, got 0"):
        DenseNetBC(CIFAR, 10, growth=0)


def test_a_vgg_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        VGG16(CIFAR, 10, width=0)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm must be 'batch' or 'none', got 'layer'"):
        WideResNet(CIFAR, 10, norm="layer")
    with pytest.raises(ValueError, match="norm must be 'batch' or 'none', got 'layer'"):
        ResNet(CIFAR, 10, norm="layer")
