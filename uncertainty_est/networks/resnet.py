"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, PooledShortcut, make_activation, strided

# Blocks of each stage, and whether they are bottlenecks.
_STAGES = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


class ResNet(Network):
    """Residual network with the stem for small images: a 3x3 convolution of stride 1 and no pooling.

    Four stages of 64, 128, 256, 512 channels (times 4 at the end of a bottleneck) halve the image three
    times; features are the average over the image. Convolutions have no bias, as batch normalisation follows
    each.

    References:
        He et al., arXiv:1512.03385. `mod`: Mukhoti et al., arXiv:2102.11582.

    Args:
        data_shape: ``[channels, height, width]``, at least 8x8.
        num_classes: number of logits.
        depth: 18, 34 or 50.
        layers: makes the convolutions; plain ones if not given.
        mod: LeakyReLU in place of ReLU, and pooled shortcuts in place of 1x1 convolutions.
        dropout: probability of dropping an activation before the last convolution of a block.

    Raises:
        ConfigError: `data_shape` is no image of at least 8x8.
        ValueError: unknown depth.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        depth: int = 18,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(data_shape, network="resnet", min_size=8)
        if depth not in _STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, _STAGES))}, got {depth}")
        counts, bottleneck = _STAGES[depth]
        make = layers or Layers()
        size = (height, width)
        self.stem = nn.Sequential(
            make.conv(channels, 64, 3, padding=1, bias=False, input_size=size),
            nn.BatchNorm2d(64),
            make_activation("relu", mod=mod),
        )
        self.blocks = nn.Sequential()
        self._first_blocks = [sum(counts[:stage]) for stage in range(len(counts))]
        c = 64
        for stage, count in enumerate(counts):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                block = _Block(c, 64 * 2**stage, stride, size, bottleneck, make, mod, dropout)
                self.blocks.append(block)
                c, size = block.out_channels, strided(size, stride)
        self.head = nn.Linear(c, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        return [self.blocks[first] for first in self._first_blocks[1:]]

    def features(self, x: Tensor) -> Tensor:
        """Pooled features, ``[B, 512]`` or ``[B, 2048]``, of ``x: [B, channels, height, width]``."""
        return self.blocks(self.stem(x)).mean((2, 3))


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 as a bottleneck, with a shortcut around them."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        size: tuple[int, int],
        bottleneck: bool,
        make: Layers,
        mod: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        small = strided(size, stride)
        self.out_channels = 4 * width if bottleneck else width

        def conv(c_in: int, c_out: int, kernel: int, step: int, at: tuple[int, int]) -> list[nn.Module]:
            layer = make.conv(c_in, c_out, kernel, stride=step, padding=kernel // 2, bias=False, input_size=at)
            return [layer, nn.BatchNorm2d(c_out)]

        def act() -> nn.Module:
            return make_activation("relu", mod=mod)

        if bottleneck:
            first = [*conv(in_channels, width, 1, 1, size), act(), *conv(width, width, 3, stride, size)]
            last = conv(width, self.out_channels, 1, 1, small)
        else:
            first = conv(in_channels, width, 3, stride, size)
            last = conv(width, width, 3, 1, small)
        self.body = nn.Sequential(*first, act(), nn.Dropout(dropout), *last)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != self.out_channels:
            if mod:
                self.shortcut = PooledShortcut(in_channels, self.out_channels, stride, size)
            else:
                self.shortcut = nn.Sequential(*conv(in_channels, self.out_channels, 1, stride, size))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))
