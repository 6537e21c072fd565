"""LeNet-5, the small convolutional network without residual connections."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, make_activation


class LeNet(Network):
    """Two 5x5 convolutions (6 and 16 channels), each max-pooled by 2, then hidden layers of 120 and 84.

    The first convolution is padded by 2, so that 28x28 images give the original's 16x5x5 maps. Features are
    the activations before the head; under ReLU many of them are exactly zero, which density methods suffer
    from. The wide form, 32 and 64 channels, both padded, and one hidden layer of 1024, is the one that adversarial
    training is commonly shown on.

    References:
        LeCun et al., 1998, Gradient-based learning applied to document recognition. Wide: Madry et al.,
        arXiv:1706.06083.

    Args:
        data_shape: ``[channels, height, width]``, at least 12x12, or 4x4 with `pad_second`.
        num_classes: number of logits.
        channels: of the two convolutions.
        hidden_dims: widths of the hidden linear layers, at least one.
        pad_second: pad the second convolution by 2 as well.
        layers: makes the convolutions and hidden linear layers; plain ones if not given.
        mod: LeakyReLU in place of ReLU.
        dropout: probability of dropping an activation of the hidden linear layers.

    Raises:
        ConfigError: `data_shape` is no image, or too small.
        ValueError: no hidden layer, or not two convolutions.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (6, 16),
        hidden_dims: Sequence[int] = (120, 84),
        pad_second: bool = False,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != 2 or not hidden_dims:
            raise ValueError(
                f"channels must be two numbers and hidden_dims at least one, got {list(channels)} and"
                f" {list(hidden_dims)}"
            )
        in_channels, height, width = image_shape(
            data_shape, network="lenet", min_size=4 if pad_second else 12, instead="wrn_10_1"
        )
        make = layers or Layers()
        padding = 2 if pad_second else 0
        inner = (height // 2, width // 2)
        self.body = nn.Sequential(
            make.conv(in_channels, channels[0], 5, padding=2, input_size=(height, width)),
            make_activation("relu", mod=mod),
            nn.MaxPool2d(2),
            make.conv(channels[0], channels[1], 5, padding=padding, input_size=inner),
            make_activation("relu", mod=mod),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        dim = channels[1] * math.prod((n + 2 * padding - 4) // 2 for n in inner)
        for hidden in hidden_dims:
            self.body.extend([make.linear(dim, hidden), make_activation("relu", mod=mod), nn.Dropout(dropout)])
            dim = hidden
        self.head = nn.Linear(dim, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        # The maps before each pooling and the hidden layers; the last one is the features.
        return [m for m in self.body if isinstance(m, nn.MaxPool2d | nn.Dropout)][:-1]

    def features(self, x: Tensor) -> Tensor:
        """Last hidden layer ``[B, hidden_dims[-1]]`` of ``x: [B, channels, height, width]``."""
        return self.body(x)
