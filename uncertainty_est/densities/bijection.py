"""Invertible maps of images with their log-determinants; those that have no network inside."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int, int]


class Bijection(nn.Module, ABC):
    """An invertible map of images ``[B, C, H, W]``, with the logarithm of its Jacobian's determinant."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""``y`` of ``x: [B, C, H, W]`` and :math:`\ln |\det \partial y / \partial x|`, ``[B]`` or one for all."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The ``x`` whose image is ``y``."""

    def output_shape(self, shape: Shape) -> Shape:
        """``(C, H, W)`` of the output for an input of `shape`."""
        return shape


class Squeeze(Bijection):
    """Blocks of 2x2 pixels become channels: ``[B, C, H, W]`` to ``[B, 4C, H/2, W/2]``, one pixel of each after another.

    Args:
        order: ``"rows"`` goes through a block row by row. ``"diagonals"`` puts the two pixels of each diagonal
            together, so that each half of the channels is one colour of a checkerboard.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, section 3.6.
    """

    def __init__(self, order: Literal["rows", "diagonals"] = "rows") -> None:
        super().__init__()
        self.pixels = ((0, 0), (0, 1), (1, 0), (1, 1)) if order == "rows" else ((0, 0), (1, 1), (0, 1), (1, 0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x[..., i::2, j::2] for i, j in self.pixels], dim=1), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        batch, channels, height, width = y.shape
        x = y.new_empty(batch, channels // 4, 2 * height, 2 * width)
        for (i, j), part in zip(self.pixels, y.chunk(4, dim=1), strict=True):
            x[..., i::2, j::2] = part
        return x

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        return 4 * channels, height // 2, width // 2


class Unsqueeze(Bijection):
    """The inverse of :class:`Squeeze` by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.squeeze.inverse(x), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        return self.squeeze(y)[0]

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        return channels // 4, 2 * height, 2 * width


class InvertibleConv(Bijection):
    r"""One matrix over the channels of every pixel, :math:`y_{ij} = W x_{ij}`, a rotation at first.

    :math:`\ln|\det| = H W \ln |\det W|`.

    References:
        Kingma and Dhariwal, arXiv:1807.03039, section 3.2.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        self.weight = nn.Parameter(rotation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.conv2d(x, self.weight[:, :, None, None])
        return y, x.shape[-2] * x.shape[-1] * torch.linalg.slogdet(self.weight).logabsdet

    def inverse(self, y: Tensor) -> Tensor:
        # In float64: errors of an ill-conditioned inverse would grow over dozens of steps.
        weight = torch.linalg.inv(self.weight.double()).to(y.dtype)
        return F.conv2d(y, weight[:, :, None, None])


class Logit(Bijection):
    r"""Unit interval to the real line, :math:`y = \operatorname{logit}(\tfrac{1 - c}{2} + c x)` for each number.

    Per number, :math:`\ln|\det| = \operatorname{softplus}(y) + \operatorname{softplus}(-y) + \ln c`. Only x slightly
    outside of [0, 1] would reach infinity, so that no rounding can. The inverse takes all real numbers, and
    yields :math:`(-\tfrac{1 - c}{2c}, 1 + \tfrac{1 - c}{2c})`.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, section 4.1.

    Args:
        share: c, the share of (0, 1) that the unit interval is shrunk to before the logit.

    Raises:
        ValueError: `share` outside (0, 1).
    """

    def __init__(self, share: float = 0.9) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shrunk = (1 - self.share) / 2 + self.share * x
        y = shrunk.log() - (-shrunk).log1p()
        log_det = F.softplus(y) + F.softplus(-y) + math.log(self.share)
        return y, log_det.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return (y.sigmoid() - (1 - self.share) / 2) / self.share
