"""Residual networks for small and for large images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, ResidualParts, strided, xavier_relu

# Blocks of each stage, and whether they are bottlenecks.
_STAGES = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}
# Height and width from which on the stem is the published one for large images, where it is not said.
_LARGE = 128


class ResNet(Network):
    r"""Post-activation residual network, with a stem for small images or the published one for large images.

    The small stem is a 3x3 convolution of stride 1, the large one a 7x7 convolution of stride 2 and 3x3 max pooling
    of stride 2. Four stages of 64, 128, 256, 512 channels (times 4 at the end of a bottleneck) halve the image three
    times; features are the average over the image. Convolutions have no bias, as batch normalisation follows each;
    a bottleneck halves the image in its 3x3 convolution.

    With ``norm="none"`` (for energy-based models, where batch statistics would couple the samples) the convolutions
    have biases and start from Xavier's uniform distribution of gain :math:`\sqrt 2`.

    References:
        He et al., arXiv:1512.03385. `mod`: Mukhoti et al., arXiv:2102.11582.

    Args:
        data_shape: ``[channels, height, width]``, at least 8x8, with the large stem at least 32x32.
        num_classes: number of logits.
        depth: 18, 34 or 50.
        stem: ``"small"``, ``"large"``, or ``"auto"``: large for images of at least 128x128.
        norm: ``"batch"`` or ``"none"``.
        activation: name of the activation.
        negative_slope: slope of ``leaky_relu`` below zero.
        layers: makes the convolutions; plain ones if not given. Max pooling in the large stem is not bounded by it.
        mod: LeakyReLU in place of ReLU, and pooled shortcuts in place of 1x1 convolutions.
        dropout: probability of dropping an activation before the last convolution of a block.

    Raises:
        ConfigError: `data_shape` is no image, or too small.
        ValueError: unknown depth, stem, norm or activation.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        depth: int = 18,
        stem: str = "auto",
        norm: str = "batch",
        activation: str = "relu",
        negative_slope: float = 0.01,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, _STAGES))}, got {depth}")
        if stem not in ("auto", "small", "large"):
            raise ValueError(f"stem must be 'auto', 'small' or 'large', got '{stem}'")
        if norm not in ("batch", "none"):
            raise ValueError(f"norm must be 'batch' or 'none', got '{norm}'")
        if stem == "large":
            channels, height, width = image_shape(data_shape, network="resnet with stem=large", min_size=32)
        else:
            channels, height, width = image_shape(data_shape, network="resnet", min_size=8)
        is_large = stem == "large" or (stem == "auto" and min(height, width) >= _LARGE)
        counts, bottleneck = _STAGES[depth]
        parts = _Parts(layers or Layers(), norm == "batch", activation, negative_slope, mod, dropout)
        size = (height, width)
        kernel, stride = (7, 2) if is_large else (3, 1)
        self.stem = nn.Sequential(*parts.conv(channels, 64, kernel, stride, size), parts.act())
        size = strided(size, stride)
        if is_large:
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
            size = strided(size, 2)
        self.blocks = nn.Sequential()
        self._first_blocks = [sum(counts[:number]) for number in range(len(counts))]
        c = 64
        for number, count in enumerate(counts):
            for i in range(count):
                stride = 2 if number > 0 and i == 0 else 1
                block = _Block(c, 64 * 2**number, stride, size, bottleneck, parts)
                self.blocks.append(block)
                c, size = block.out_channels, strided(size, stride)
        self.head = nn.Linear(c, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        return [self.blocks[first] for first in self._first_blocks[1:]]

    def features(self, x: Tensor) -> Tensor:
        """Pooled features, ``[B, 512]`` or ``[B, 2048]``, of ``x: [B, channels, height, width]``."""
        return self.blocks(self.stem(x)).mean((2, 3))


class _Parts(ResidualParts):
    def conv(self, c_in: int, c_out: int, kernel: int, stride: int, size: tuple[int, int]) -> list[nn.Module]:
        """A convolution, with the normalisation that follows it."""
        layer = self.layers.conv(
            c_in,
            c_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=not self.batch_norm,
            input_size=size,
            init=None if self.batch_norm else xavier_relu,
        )
        return [layer, nn.BatchNorm2d(c_out)] if self.batch_norm else [layer]

    def projection(self, c_in: int, c_out: int, stride: int, size: tuple[int, int]) -> nn.Module:
        return nn.Sequential(*self.conv(c_in, c_out, 1, stride, size))


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 as a bottleneck, with a shortcut around them."""

    def __init__(
        self, in_channels: int, width: int, stride: int, size: tuple[int, int], bottleneck: bool, parts: _Parts
    ) -> None:
        super().__init__()
        small = strided(size, stride)
        self.out_channels = 4 * width if bottleneck else width
        if bottleneck:
            first = [
                *parts.conv(in_channels, width, 1, 1, size),
                parts.act(),
                *parts.conv(width, width, 3, stride, size),
            ]
            last = parts.conv(width, self.out_channels, 1, 1, small)
        else:
            first = parts.conv(in_channels, width, 3, stride, size)
            last = parts.conv(width, width, 3, 1, small)
        self.body = nn.Sequential(*first, parts.act(), nn.Dropout(parts.dropout), *last)
        self.shortcut = parts.shortcut(in_channels, self.out_channels, stride, size)
        self.act = parts.act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))
