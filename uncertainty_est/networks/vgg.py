"""VGG-16 with batch normalisation, the deep convolutional network without residual connections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.networks.base import Network, image_shape
from uncertainty_est.networks.layers import Layers, make_activation, strided

# Channels over those of the first stage, and number of convolutions, of each stage.
_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class VGG16(Network):
    """Thirteen 3x3 convolutions with batch normalisation in five max-pooled stages, and one linear head.

    Odd sizes are pooled with a smaller window at the border, so that 28x28 images keep their last row.
    Features are the average over what is left of the image.

    References:
        Simonyan and Zisserman, arXiv:1409.1556, configuration D.

    Args:
        data_shape: ``[channels, height, width]``, at least 17x17, which all five poolings halve.
        num_classes: number of logits.
        width: channels of the first stage, of which the last two have eight times as many.
        layers: makes the convolutions; plain ones if not given.
        mod: LeakyReLU in place of ReLU.
        dropout: probability of dropping a pooled feature.

    Raises:
        ConfigError: `data_shape` is no image of at least 17x17.
        ValueError: a width below 1.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        width: int = 64,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        c, rows, columns = image_shape(data_shape, network="vgg16", min_size=17, instead="wrn_10_1")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        make = layers or Layers()
        size = (rows, columns)
        self.body = nn.Sequential()
        for factor, count in _STAGES:
            channels = factor * width
            for _ in range(count):
                self.body.append(make.conv(c, channels, 3, padding=1, input_size=size))
                self.body.append(nn.BatchNorm2d(channels))
                self.body.append(make_activation("relu", mod=mod))
                c = channels
            self.body.append(nn.MaxPool2d(2, ceil_mode=True))
            size = strided(size, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(c, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        return [m for m in self.body if isinstance(m, nn.MaxPool2d)][:-1]

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[B, 8 * width]`` of ``x: [B, channels, height, width]``."""
        return self.dropout(self.body(x).mean((2, 3)))
