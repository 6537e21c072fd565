"""LeNet-5, the small convolutional network without residual connections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, make_activation


class LeNet(Network):
    """Two 5x5 convolutions (6 and 16 channels), each max-pooled by 2, then hidden layers of 120 and 84.

    The first convolution is padded by 2, so that 28x28 images give the original's 16x5x5 maps. Features are
    the 84 activations before the head; under ReLU many of them are exactly zero, which density methods suffer
    from.

    References:
        LeCun et al., 1998, Gradient-based learning applied to document recognition.

    Args:
        data_shape: ``[channels, height, width]``, at least 12x12.
        num_classes: number of logits.
        layers: makes the convolutions and hidden linear layers; plain ones if not given.
        mod: LeakyReLU in place of ReLU.
        dropout: probability of dropping an activation of the two hidden linear layers.

    Raises:
        ConfigError: `data_shape` is no image of at least 12x12.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, *size = image_shape(data_shape, network="lenet", min_size=12, instead="wrn_10_1")
        make = layers or Layers()
        inner = (size[0] // 2, size[1] // 2)
        self.body = nn.Sequential(
            make.conv(channels, 6, 5, padding=2, input_size=(size[0], size[1])),
            make_activation("relu", mod=mod),
            nn.MaxPool2d(2),
            make.conv(6, 16, 5, input_size=inner),
            make_activation("relu", mod=mod),
            nn.MaxPool2d(2),
            nn.Flatten(),
            make.linear(16 * ((inner[0] - 4) // 2) * ((inner[1] - 4) // 2), 120),
            make_activation("relu", mod=mod),
            nn.Dropout(dropout),
            make.linear(120, 84),
            make_activation("relu", mod=mod),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(84, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        # The maps before each pooling and the first hidden layer; the second one is the features.
        return [m for m in self.body if isinstance(m, nn.MaxPool2d | nn.Dropout)][:-1]

    def features(self, x: Tensor) -> Tensor:
        """Last hidden layer ``[B, 84]`` of ``x: [B, channels, height, width]``."""
        return self.body(x)
