"""RealNVP: couplings over checkerboards and over channels at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.bijection import Bijection, Shape, Squeeze, Unsqueeze
from uncertainty_est.densities.coupling_nets import ResidualNet
from uncertainty_est.densities.image_coupling import ChannelCoupling, CheckerboardCoupling
from uncertainty_est.densities.image_flow import ImageFlow, halvings
from uncertainty_est.errors import ConfigError


class RealNVPFlow(ImageFlow):
    """Scales of three checkerboard couplings and three channel-wise ones, half of the numbers set aside between them.

    What is set aside is one colour of a checkerboard. The last scale is four checkerboard couplings. The networks
    inside the couplings double their width where the image halves, and are normalised by ActNorm.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, section 3.6.

    Args:
        data_shape: ``(C, H, W)``.
        num_scales: number of scales; height and width are halved one time less.
        num_blocks: residual blocks of the networks inside the couplings.
        hidden_channels: width of those networks at the first scale.
        levels: grey levels of a pixel.

    Raises:
        ConfigError: height and width cannot be halved often enough.
        ValueError: a number below 1.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_scales: int = 2,
        num_blocks: int = 4,
        hidden_channels: int = 32,
        levels: int = 256,
    ) -> None:
        channels, height, width = data_shape
        shape = (channels, height, width)
        check_positive(num_scales=num_scales, num_blocks=num_blocks, hidden_channels=hidden_channels)
        largest = halvings(shape) + 1
        if num_scales > largest:
            raise ConfigError(
                f"fixed.model_config.num_scales: images of {height}x{width} allow {largest} at most, got {num_scales};"
                f" set it to {largest} or less"
            )
        stages = []
        for _ in range(num_scales - 1):
            by_channel = _by_channel(3, 4 * shape[0], 2 * hidden_channels, num_blocks)
            checkerboards = _checkerboards(3, shape, hidden_channels, num_blocks)
            stages.append([*checkerboards, Squeeze(), *by_channel, Unsqueeze(), Squeeze("diagonals")])
            shape = (2 * shape[0], shape[1] // 2, shape[2] // 2)
            hidden_channels *= 2
        stages.append(_checkerboards(4, shape, hidden_channels, num_blocks))
        super().__init__((channels, height, width), stages, levels)


def _checkerboards(n: int, shape: Shape, hidden_channels: int, num_blocks: int) -> list[Bijection]:
    channels = shape[0]
    return [
        CheckerboardCoupling(ResidualNet(channels, 2 * channels, hidden_channels, num_blocks), shape, i % 2 == 1)
        for i in range(n)
    ]


def _by_channel(n: int, channels: int, hidden_channels: int, num_blocks: int) -> list[Bijection]:
    return [
        ChannelCoupling(ResidualNet(channels // 2, channels, hidden_channels, num_blocks), channels, i % 2 == 1)
        for i in range(n)
    ]
