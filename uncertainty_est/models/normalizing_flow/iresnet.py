"""Invertible residual networks, normalising flows of tables and of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est.densities.image_flow import ImageFlow
from uncertainty_est.densities.iresnet import Shape, residual_bijections
from uncertainty_est.densities.normal_flow import NormalFlow
from uncertainty_est.densities.per_class import PerClass
from uncertainty_est.densities.residual_block import ContractiveLayers, contraction
from uncertainty_est.densities.residual_log_det import LogDet, Series
from uncertainty_est.models.density import DensityMethod
from uncertainty_est.models.normalizing_flow.image import ImageFlowMethod


class IResNet(DensityMethod):
    r"""Density of tables by residual blocks :math:`x + F(x)`, each after an activation normalisation.

    Every layer of the contraction F has a norm of at most ``layers.coeff`` < 1, so that a block is invertible, by
    iterations, and its log-determinant a convergent series. Score: ``p(x)``. Draws samples.

    References:
        Behrmann et al., arXiv:1811.00995. ``roulette``: Chen et al., arXiv:1906.02735.

    Args:
        data_shape: shape of one input, which is flattened to D numbers.
        layers: makes F's layers, :class:`~uncertainty_est.networks.lipschitz.SpectralLayers` with a coeff below 1.
        num_classes: 1 for one density of all data, C for one for each class.
        discriminative: the loss with C densities.
        num_blocks: residual blocks.
        hidden_dims: widths of F's hidden layers.
        activation: ``elu``, ``lipswish``, ``softplus`` or ``tanh``.
        last_activation: one after F's last layer as well.
        log_det: ``exact`` (D products with a Jacobian), ``series`` (cut off) or ``roulette`` (unbiased), in training.
        eval_log_det: ``exact`` or ``series``, in evaluation.
        series: settings of the series and the roulette; their defaults if not given.

    Raises:
        ValueError: layers that do not contract, an unknown kind, or a number out of its range.
    """

    can_sample = True

    def __init__(
        self,
        data_shape: Sequence[int],
        layers: ContractiveLayers,
        num_classes: int = 1,
        discriminative: bool = True,
        num_blocks: int = 8,
        hidden_dims: Sequence[int] = (32, 32),
        activation: str = "elu",
        last_activation: bool = True,
        log_det: str = "exact",
        eval_log_det: str = "exact",
        series: Series | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(data_shape, num_classes, discriminative, optimizer, scheduler)
        shape = (math.prod(self.data_shape),)
        residual, log_dets = _makers(layers, hidden_dims, activation, last_activation, log_det, eval_log_det, series)
        self.density = PerClass(
            [NormalFlow(shape, residual_bijections(shape, residual, log_dets, num_blocks)) for _ in range(num_classes)]
        )

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density.log_prob(x.flatten(1))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.density.sample(n, generator).view(n, *self.data_shape)


class ImageIResNet(ImageFlowMethod):
    r"""Density of images in [0, 1] by convolutional residual blocks; else as :class:`IResNet`.

    Args:
        data_shape: ``(C, H, W)``.
        layers: makes F's layers, see :class:`IResNet`.
        num_classes: 1 for one density of all images, C for one for each class.
        discriminative: the loss with C densities.
        num_scales: between two scales, blocks of 2x2 pixels become channels.
        squeeze_first: before the first scale as well.
        blocks_per_scale: residual blocks.
        hidden_channels: channels of F's hidden layers.
        activation: see :class:`IResNet`, as all that follow.
        last_activation: see there.
        log_det: see there.
        eval_log_det: see there.
        series: see there.
        levels: grey levels of a pixel.

    Raises:
        ValueError: layers that do not contract, sides that cannot be halved so often, an unknown kind, or a number
            out of its range.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        layers: ContractiveLayers,
        num_classes: int = 1,
        discriminative: bool = True,
        num_scales: int = 3,
        squeeze_first: bool = False,
        blocks_per_scale: int = 8,
        hidden_channels: Sequence[int] = (64, 64),
        activation: str = "elu",
        last_activation: bool = True,
        log_det: str = "roulette",
        eval_log_det: str = "series",
        series: Series | None = None,
        levels: int = 256,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        channels, height, width = (int(n) for n in data_shape)
        shape = channels, height, width
        residual, log_dets = _makers(
            layers, hidden_channels, activation, last_activation, log_det, eval_log_det, series
        )

        def make_flow() -> ImageFlow:
            stage = residual_bijections(shape, residual, log_dets, blocks_per_scale, num_scales, squeeze_first)
            return ImageFlow(shape, [stage], levels)

        super().__init__(make_flow, shape, num_classes, discriminative, optimizer, scheduler)


def _makers(
    layers: ContractiveLayers,
    widths: Sequence[int],
    activation: str,
    last_activation: bool,
    log_det: str,
    eval_log_det: str,
    series: Series | None,
) -> tuple[Callable[[Shape], nn.Module], Callable[[Shape, int], LogDet]]:
    """What makes contractions and log-determinants for inputs of a shape."""

    def residual(shape: Shape) -> nn.Module:
        return contraction(shape, widths, layers, activation, last_activation)

    def log_dets(shape: Shape, number: int) -> LogDet:
        return LogDet(shape, log_det, eval_log_det, series, seed=number)

    return residual, log_dets
