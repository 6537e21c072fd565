"""Densely connected networks with bottlenecks and compression, for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, kaiming_fan_out, make_activation, strided


class DenseNetBC(Network):
    """DenseNet-BC of `depth` = 6n + 4 layers: three blocks of n layers that each read all maps before them.

    A layer appends `growth` maps to its input: BN - activation - 1x1 convolution to 4 growth channels - BN -
    activation - 3x3 convolution. After a 3x3 convolution to 2 growth channels come the blocks; between them BN -
    activation - 1x1 convolution to half of the channels (rounded down) - average pooling halves the image, an odd size
    with a smaller window at the border. Features are the average over the image after a last normalisation and
    activation. Convolutions have no bias and start from Kaiming's normal distribution (fan-out).

    References:
        Huang et al., arXiv:1608.06993, Section 3 and Section 4.2.

    Args:
        data_shape: ``[channels, height, width]``, at least 4x4.
        num_classes: number of logits.
        depth: 10, 16, 22, ..., 100, ...
        growth: maps that a layer appends.
        layers: makes the convolutions; plain ones if not given.
        mod: LeakyReLU in place of ReLU.
        dropout: probability of dropping an activation after each convolution of a block.

    Raises:
        ConfigError: `data_shape` is no image of at least 4x4.
        ValueError: unknown depth, or no growth.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        depth: int = 100,
        growth: int = 12,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(data_shape, network="densenet_bc", min_size=4)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be one of 10, 16, 22, 28, ... (6n + 4), got {depth}")
        if growth < 1:
            raise ValueError(f"growth must be at least 1, got {growth}")
        make = layers or Layers()
        size = (height, width)

        def enter(c_in: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(c_in), make_activation("relu", mod=mod)]

        def conv(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
            return make.conv(
                c_in, c_out, kernel, padding=kernel // 2, bias=False, input_size=size, init=kaiming_fan_out
            )

        c = 2 * growth
        self.stem = conv(channels, c, 3)
        self.blocks = nn.Sequential()
        for block in range(3):
            if block:
                self.blocks.append(nn.Sequential(*enter(c), conv(c, c // 2, 1), nn.AvgPool2d(2, ceil_mode=True)))
                c, size = c // 2, strided(size, 2)
            dense = nn.Sequential()
            for _ in range((depth - 4) // 6):
                bottleneck = [*enter(c), conv(c, 4 * growth, 1), nn.Dropout(dropout)]
                dense.append(_Layer(*bottleneck, *enter(4 * growth), conv(4 * growth, growth, 3), nn.Dropout(dropout)))
                c += growth
            self.blocks.append(dense)
        self.last = nn.Sequential(*enter(c))
        self.head = nn.Linear(c, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        return [self.blocks[1], self.blocks[3]]

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[B, feature_dim]`` of ``x: [B, channels, height, width]``."""
        return self.last(self.blocks(self.stem(x))).mean((2, 3))


class _Layer(nn.Sequential):
    """Appends its output to its input, along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)
