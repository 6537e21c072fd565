"""From the form a file has to the shape that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.errors import DataError

# ITU-R BT.601, the weights that Pillow's "L" mode uses.
_LUMINANCE = (0.299, 0.587, 0.114)
_CHUNK = 4096


def check_image_shape(shape: Sequence[int], name: str) -> None:
    """Refuse a shape that is not ``(1 or 3, H, W)``.

    Raises:
        DataError: with the shape and the remedy.
    """
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(
            f"{name} holds images and cannot be given the shape {tuple(shape)}; fixed.data_shape of images is"
            f" (1 or 3, height, width)"
        )


def to_nchw(images: np.ndarray | Tensor) -> Tensor:
    """uint8 images ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` as ``[N, C, H, W]``, C = 1 or 3."""
    x = torch.as_tensor(images)
    if x.ndim == 3:
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2) if x.shape[-1] in (1, 3) else x


def fit_images(x: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """Images in the channels and size asked for: ``[N, c, h, w]`` uint8 -> ``[N, C, H, W]`` uint8.

    Colour becomes grey by luminance, grey becomes colour by repetition. The size is reached by an
    antialiased bilinear resize that covers ``H x W`` and keeps the aspect ratio, then a central crop.

    Raises:
        DataError: `shape` is no shape of an image.
    """
    check_image_shape(shape, name)
    if not len(x):
        return x.new_empty((0, *shape))
    return torch.cat([_fit_chunk(chunk, *shape) for chunk in x.split(_CHUNK)])


def covering_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image, with its aspect ratio, that just covers a window of another height and width."""
    scale = max(window[0] / size[0], window[1] / size[1])
    return max(window[0], round(size[0] * scale)), max(window[1], round(size[1] * scale))


def _fit_chunk(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    if x.shape[1] == 3 and channels == 1:
        weights = torch.tensor(_LUMINANCE).view(1, 3, 1, 1)
        x = (x.float() * weights).sum(1, keepdim=True).round_().clamp_(0, 255).to(torch.uint8)
    if x.shape[-2:] != (height, width):
        size = covering_size((x.shape[-2], x.shape[-1]), (height, width))
        resized = F.interpolate(x.float(), size, mode="bilinear", antialias=True)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        x = resized[..., top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, channels, -1, -1).contiguous()


def fit_table(x: np.ndarray | Tensor, shape: Sequence[int], name: str) -> Tensor:
    """A table ``[N, D]`` as float32, if D is what was asked for.

    Raises:
        DataError: D is another number, an image was asked for, or a value is not finite.
    """
    table = torch.as_tensor(x, dtype=torch.float32)
    if tuple(table.shape[1:]) != tuple(shape):
        raise DataError(
            f"{name} is a table of {table.shape[1]} features and cannot be given the shape {tuple(shape)};"
            f" the fixed.data_shape that fits is [{table.shape[1]}]"
        )
    if not bool(torch.isfinite(table).all()):
        raise DataError(f"{name} has values that are NaN or infinite; remove those rows or fill them in")
    return table
