"""Glow: steps of normalisation, 1x1 convolution and coupling at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from uncertainty_est.densities.actnorm import ActNorm
from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.bijection import Bijection, InvertibleConv, Squeeze
from uncertainty_est.densities.coupling_nets import ConvNet
from uncertainty_est.densities.image_coupling import ChannelCoupling
from uncertainty_est.densities.image_flow import ImageFlow, halvings
from uncertainty_est.errors import ConfigError

_LEVELS = 3


class GlowFlow(ImageFlow):
    """Levels that each squeeze 2x2 pixels into channels, do their steps, and set aside half of the channels.

    The networks inside the couplings are normalised by ActNorm as well.

    References:
        Kingma and Dhariwal, arXiv:1807.03039, section 3 and figure 2, with fixed standard normals for all latents.

    Args:
        data_shape: ``(C, H, W)``.
        num_levels: how often to squeeze; ``None`` is as often as height and width can be halved, up to 3.
        num_steps: steps a level.
        hidden_channels: width of the networks inside the couplings.
        levels: grey levels of a pixel.

    Raises:
        ConfigError: height and width cannot be halved `num_levels` times.
        ValueError: a number below 1.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_levels: int | None = None,
        num_steps: int = 32,
        hidden_channels: int = 512,
        levels: int = 256,
    ) -> None:
        channels, height, width = data_shape
        largest = halvings((channels, height, width))
        if not largest:
            raise ConfigError(f"fixed.data_shape: Glow needs images of even height and width, got {height}x{width}")
        num_levels = min(_LEVELS, largest) if num_levels is None else num_levels
        check_positive(num_levels=num_levels, num_steps=num_steps, hidden_channels=hidden_channels)
        if num_levels > largest:
            raise ConfigError(
                f"fixed.model_config.num_levels: images of {height}x{width} can be halved {largest} times at most,"
                f" got {num_levels}; set it to {largest} or less, or to null"
            )
        stages = []
        inside = channels
        for _ in range(num_levels):
            inside *= 4
            stages.append([Squeeze(), *_steps(num_steps, inside, hidden_channels)])
            inside //= 2
        super().__init__((channels, height, width), stages, levels)


def _steps(num_steps: int, channels: int, hidden_channels: int) -> list[Bijection]:
    steps: list[Bijection] = []
    for _ in range(num_steps):
        network = ConvNet(channels // 2, channels, hidden_channels)
        steps += [ActNorm(channels), InvertibleConv(channels), ChannelCoupling(network, channels)]
    return steps
