"""Wide residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, ResidualParts, kaiming_fan_out, strided, xavier_relu


class WideResNet(Network):
    r"""Pre-activation residual network of `depth` = 6n + 4 layers and widths 16, 16k, 32k, 64k.

    A block adds BN - activation - conv - BN - activation - dropout - conv to its input, with 3x3
    convolutions. Three groups of n blocks halve the image twice; features are the average over the image
    after a last normalisation and activation. Convolutions start from Kaiming's normal distribution
    (fan-out).

    With ``norm="none"`` (for energy-based models, where batch statistics would couple the samples) the
    convolutions have biases and start from Xavier's uniform distribution of gain :math:`\sqrt 2`, and a block
    adds to its activated input.

    References:
        Zagoruyko and Komodakis, arXiv:1605.07146. `mod`: Mukhoti et al., arXiv:2102.11582.
        Without normalisation: Grathwohl et al., arXiv:1912.03263.

    Args:
        data_shape: ``[channels, height, width]``, at least 4x4.
        num_classes: number of logits.
        depth: 10, 16, 22, 28, ...
        widen_factor: factor k of the widths.
        norm: ``"batch"`` or ``"none"``.
        bn_momentum: weight of a new batch in the running statistics.
        activation: name of the activation.
        negative_slope: slope of ``leaky_relu`` below zero.
        layers: makes the convolutions; plain ones if not given.
        mod: LeakyReLU in place of ReLU, and pooled shortcuts in place of 1x1 convolutions.
        dropout: probability of dropping an activation between the two convolutions of a block.

    Raises:
        ConfigError: `data_shape` is no image of at least 4x4.
        ValueError: unknown depth, norm or activation.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        depth: int = 28,
        widen_factor: int = 10,
        norm: str = "batch",
        bn_momentum: float = 0.1,
        activation: str = "relu",
        negative_slope: float = 0.01,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(data_shape, network="wrn", min_size=4)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be one of 10, 16, 22, 28, ... (6n + 4), got {depth}")
        if norm not in ("batch", "none"):
            raise ValueError(f"norm must be 'batch' or 'none', got '{norm}'")
        parts = _Parts(layers or Layers(), norm == "batch", activation, negative_slope, mod, dropout, bn_momentum)
        size = (height, width)
        self.stem = parts.conv(channels, 16, 3, 1, size)
        self.blocks = nn.Sequential()
        c = 16
        for group in range(3):
            for i in range((depth - 4) // 6):
                stride = 2 if group > 0 and i == 0 else 1
                out = 16 * widen_factor * 2**group
                self.blocks.append(_Block(c, out, stride, size, parts))
                c, size = out, strided(size, stride)
        self.norm = parts.norm(c)
        self.act = parts.act()
        self.head = nn.Linear(c, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        blocks = len(self.blocks) // 3
        return [self.blocks[blocks], self.blocks[2 * blocks]]

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[B, 64 * widen_factor]`` of ``x: [B, channels, height, width]``."""
        return self.act(self.norm(self.blocks(self.stem(x)))).mean((2, 3))


@dataclass(frozen=True)
class _Parts(ResidualParts):
    bn_momentum: float

    def conv(self, c_in: int, c_out: int, kernel_size: int, stride: int, size: tuple[int, int]) -> nn.Conv2d:
        return self.layers.conv(
            c_in,
            c_out,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=not self.batch_norm,
            input_size=size,
            init=kaiming_fan_out if self.batch_norm else xavier_relu,
        )

    def norm(self, channels: int) -> nn.Module:
        if self.batch_norm:
            return nn.BatchNorm2d(channels, momentum=self.bn_momentum)
        return nn.Identity()

    def projection(self, c_in: int, c_out: int, stride: int, size: tuple[int, int]) -> nn.Module:
        return self.conv(c_in, c_out, 1, stride, size)


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, size: tuple[int, int], parts: _Parts) -> None:
        super().__init__()
        self.enter = nn.Sequential(parts.norm(c_in), parts.act())
        self.body = nn.Sequential(
            parts.conv(c_in, c_out, 3, stride, size),
            parts.norm(c_out),
            parts.act(),
            nn.Dropout(parts.dropout),
            parts.conv(c_out, c_out, 3, 1, strided(size, stride)),
        )
        self.shortcut = parts.shortcut(c_in, c_out, stride, size)
        self.skip_raw = parts.batch_norm

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.shortcut(x if self.skip_raw else h) + self.body(h)
