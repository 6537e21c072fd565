"""Networks that turn a latent vector into an input: fully connected, or residual and up-sampling for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.base import image_shape
from uncertainty_est.networks.fc import FC

# What the last layer's numbers go through, and the range this gives.
OUTPUTS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,  # [-1, 1]
    "sigmoid": nn.Sigmoid,  # [0, 1]
    "identity": nn.Identity,
}
# The smallest map that up-sampling starts from, unless the image itself is smaller.
_SMALLEST_START = 4


class FCGenerator(nn.Module):
    """Multi-layer perceptron ``[B, latent_dim] -> [B, *data_shape]``.

    Attributes:
        latent_dim: length of a latent vector.

    Args:
        latent_dim: length of a latent vector.
        data_shape: shape of one generated input, of any rank.
        hidden_dims: width of each hidden layer.
        activation: name of the activation.
        negative_slope: slope of ``leaky_relu`` below zero.
        batch_norm: normalise before each activation; the hidden layers then have no biases.
        output: ``"tanh"``, ``"sigmoid"`` or ``"identity"``, applied to the last layer.

    Raises:
        ConfigError: `data_shape` is empty.
        ValueError: `latent_dim` below 1, unknown activation or output.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        hidden_dims: Sequence[int] = (100, 100, 100, 100, 100),
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        batch_norm: bool = False,
        output: str = "identity",
    ) -> None:
        super().__init__()
        shape = [int(n) for n in data_shape]
        if not shape or min(shape) < 1:
            raise ConfigError(
                f"FCGenerator makes inputs of at least one number, got data_shape {shape}; set fixed.data_shape"
            )
        self.latent_dim = _positive("latent_dim", latent_dim)
        self.mlp = FC(
            data_shape=[latent_dim],
            num_classes=math.prod(shape),
            hidden_dims=hidden_dims,
            activation=activation,
            negative_slope=negative_slope,
            batch_norm=batch_norm,
        )
        self.unflatten = nn.Unflatten(1, tuple(shape))
        self.output = _make_output(output)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latent_dim] -> [B, *data_shape]``."""
        return self.output(self.unflatten(self.mlp(z)))


class ResNetGenerator(nn.Module):
    r"""Residual generator of images ``[B, latent_dim] -> [B, channels, height, width]``.

    A linear layer makes a map of `features` channels; each block doubles its size and adds
    BN - ReLU - up-sampling - conv - BN - ReLU - conv to the up-sampled map (nearest neighbour, 3x3 convolutions);
    BN - ReLU - conv - `output` make the image. There are as many blocks as leave the first map at least 4 high and
    wide (or as small as the image): 8x8 images start from 4x4, 28x28 from 7x7, 32x32 from 4x4 with three blocks.
    Where a size is odd, the doubled map loses its last row or column. Weights start from Xavier's uniform
    distribution of gain :math:`\sqrt 2` (1 in the linear layer), biases from zero.

    References:
        Miyato et al., arXiv:1802.05957 (the residual generator). Grathwohl et al., arXiv:2010.04230 (of VERA).

    Attributes:
        latent_dim: length of a latent vector.

    Args:
        latent_dim: length of a latent vector.
        data_shape: ``[channels, height, width]`` of one image.
        features: channels of every map.
        output: ``"tanh"`` for images in [-1, 1], ``"sigmoid"`` for [0, 1], ``"identity"`` for any range.
        batch_norm: normalise before each activation.

    Raises:
        ConfigError: `data_shape` is no image.
        ValueError: `latent_dim` or `features` below 1, or unknown output.
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        features: int = 32,
        output: str = "tanh",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(data_shape, network="ResNetGenerator", min_size=1)
        self.latent_dim = _positive("latent_dim", latent_dim)
        _positive("features", features)
        doublings = max(0, (min(height, width) // _SMALLEST_START).bit_length() - 1)
        # Sizes of the maps, first to last: each is half of the next, rounded up.
        sizes = [(-(-height // 2**k), -(-width // 2**k)) for k in range(doublings, -1, -1)]
        self.stem = nn.Linear(latent_dim, features * math.prod(sizes[0]))
        self.unflatten = nn.Unflatten(1, (features, *sizes[0]))
        self.blocks = nn.Sequential(*[_UpBlock(features, size, batch_norm) for size in sizes[1:]])
        self.last = nn.Sequential(_norm(features, batch_norm), nn.ReLU(), nn.Conv2d(features, channels, 3, padding=1))
        self.output = _make_output(output)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=1.0 if module is self.stem else 2**0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latent_dim] -> [B, channels, height, width]``."""
        return self.output(self.last(self.blocks(self.unflatten(self.stem(z)))))


class _UpBlock(nn.Module):
    """Residual block ``[B, C, h, w] -> [B, C, *size]`` with `size` twice ``h, w``, or one less."""

    def __init__(self, channels: int, size: tuple[int, int], batch_norm: bool) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.Sequential(_norm(channels, batch_norm), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels, batch_norm),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._double(x) + self.body(self._double(self.enter(x)))

    def _double(self, x: Tensor) -> Tensor:
        height, width = self.size
        return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :height, :width]


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def _make_output(name: str) -> nn.Module:
    if name not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(repr(known) for known in OUTPUTS)}, got '{name}'")
    return OUTPUTS[name]()


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
