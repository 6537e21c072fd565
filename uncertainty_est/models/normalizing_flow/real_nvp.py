"""RealNVP, a normalising flow of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from uncertainty_est.densities.real_nvp import RealNVPFlow
from uncertainty_est.models.normalizing_flow.image import ImageFlowMethod


class RealNVP(ImageFlowMethod):
    """Density of images by couplings over checkerboards and over channels; see :class:`DensityMethod`.

    Takes images in [0, 1]; others have the lowest score there is. Draws samples.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803.

    Args:
        data_shape: ``(C, H, W)``.
        num_classes: 1 for one density of all images, C for one for each class.
        discriminative: the loss with C densities.
        num_scales: number of scales; height and width are halved one time less.
        num_blocks: residual blocks of the networks inside the couplings.
        hidden_channels: width of those networks at the first scale.
        levels: grey levels of a pixel.

    Raises:
        ConfigError: height and width cannot be halved often enough.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 1,
        discriminative: bool = True,
        num_scales: int = 2,
        num_blocks: int = 4,
        hidden_channels: int = 32,
        levels: int = 256,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            lambda: RealNVPFlow(data_shape, num_scales, num_blocks, hidden_channels, levels),
            data_shape,
            num_classes,
            discriminative,
            optimizer,
            scheduler,
        )
