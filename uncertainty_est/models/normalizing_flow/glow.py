"""Glow, a normalising flow of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from uncertainty_est.densities.glow import GlowFlow
from uncertainty_est.models.normalizing_flow.image import ImageFlowMethod


class Glow(ImageFlowMethod):
    """Density of images by steps of ActNorm, invertible 1x1 convolution and coupling; see :class:`DensityMethod`.

    Takes images in [0, 1]; others have the lowest score there is. Draws samples.

    References:
        Kingma and Dhariwal, arXiv:1807.03039.

    Args:
        data_shape: ``(C, H, W)``, height and width even.
        num_classes: 1 for one density of all images, C for one for each class.
        discriminative: the loss with C densities.
        num_levels: how often 2x2 pixels are squeezed into channels; ``None`` is as often as possible, up to 3.
        num_steps: steps a level.
        hidden_channels: width of the networks inside the couplings.
        levels: grey levels of a pixel.

    Raises:
        ConfigError: height and width cannot be halved `num_levels` times.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 1,
        discriminative: bool = True,
        num_levels: int | None = None,
        num_steps: int = 32,
        hidden_channels: int = 512,
        levels: int = 256,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            lambda: GlowFlow(data_shape, num_levels, num_steps, hidden_channels, levels),
            data_shape,
            num_classes,
            discriminative,
            optimizer,
            scheduler,
        )
