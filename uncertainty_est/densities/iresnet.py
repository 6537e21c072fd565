"""Invertible residual networks: blocks of identity plus contraction, each after an activation normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from uncertainty_est.densities.actnorm import ActNorm
from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.bijection import Bijection, Squeeze
from uncertainty_est.densities.residual_block import InvertibleResidual
from uncertainty_est.densities.residual_log_det import LogDet

Shape = tuple[int, ...]


def residual_bijections(
    shape: Sequence[int],
    residual: Callable[[Shape], nn.Module],
    log_det: Callable[[Shape, int], LogDet],
    blocks_per_scale: int,
    num_scales: int = 1,
    squeeze_first: bool = False,
) -> list[Bijection]:
    """The bijections of an invertible residual network on inputs of `shape`, ``(D,)`` or ``(C, H, W)``.

    Between scales, blocks of 2x2 pixels of an image become channels; all channels go on.

    References:
        Behrmann et al., arXiv:1811.00995, section 3.

    Args:
        shape: of one input.
        residual: makes the contraction of a block for inputs of a shape.
        log_det: makes the log-determinant of a block for inputs of a shape, from the block's number.
        blocks_per_scale: number of blocks.
        num_scales: 1 for tables.
        squeeze_first: squeeze before the first scale as well.

    Raises:
        ValueError: a number below 1, or sides that cannot be halved so often.
    """
    check_positive(blocks_per_scale=blocks_per_scale, num_scales=num_scales)
    here = tuple(int(n) for n in shape)
    factor = 2 ** (num_scales - 1 + squeeze_first)
    if factor > 1 and (len(here) != 3 or here[1] % factor or here[2] % factor):
        raise ValueError(f"num_scales {num_scales} needs images of sides divisible by {factor}, got shape {list(here)}")
    bijections: list[Bijection] = []
    for scale in range(num_scales):
        if scale > 0 or squeeze_first:
            squeeze = Squeeze()
            here = squeeze.output_shape((here[0], here[1], here[2]))
            bijections.append(squeeze)
        for block in range(blocks_per_scale):
            number = scale * blocks_per_scale + block
            bijections += [ActNorm(here[0]), InvertibleResidual(residual(here), log_det(here, number))]
    return bijections
