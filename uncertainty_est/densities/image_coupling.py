"""Affine coupling: one part of an image is scaled and shifted by what a network reads off the other part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uncertainty_est.densities.bijection import Bijection


class ScaleAndShift(nn.Module):
    r"""Log-scales :math:`s = r \tanh(\cdot)` and shifts t from a network's even and odd channels.

    The factor r, one learnt number a channel that begins at 1, bounds how much one layer can stretch.

    Args:
        network: from the part that is kept to twice as many channels as change, zero at first.
        channels: that change.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """``s`` and ``t``, each ``[B, channels, H, W]``."""
        output = self.network(kept)
        return self.factor * output[:, 0::2].tanh(), output[:, 1::2]


class ChannelCoupling(Bijection):
    r"""One half of the channels is kept, the other becomes :math:`(x + t) e^{s}`; :math:`\ln|\det| = \sum s`.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, Eqs. 4-8 (which shift after scaling).

    Args:
        network: from ``channels / 2`` to ``channels`` channels.
        channels: of input and output, an even number.
        change_first: the first half changes instead of the second.

    Raises:
        ValueError: an odd number of channels.
    """

    def __init__(self, network: nn.Module, channels: int, change_first: bool = False) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels must be even, got {channels}")
        self.scale_and_shift = ScaleAndShift(network, channels // 2)
        self.change_first = change_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(x)
        s, t = self.scale_and_shift(kept)
        return self._join(kept, (changed + t) * s.exp()), s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        kept, changed = self._split(y)
        s, t = self.scale_and_shift(kept)
        return self._join(kept, changed * (-s).exp() - t)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return (second, first) if self.change_first else (first, second)

    def _join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.change_first else [kept, changed], dim=1)


class CheckerboardCoupling(Bijection):
    r"""Pixels of one colour of a checkerboard are kept, those of the other become :math:`(x + t) e^{s}`.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, section 3.4.

    Args:
        network: from ``channels`` to twice as many; it sees zeros in place of the pixels that change.
        shape: ``(channels, height, width)`` of input and output.
        change_first: the colour of the pixel at the upper left changes instead of the other.
    """

    kept: Tensor

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], change_first: bool = False) -> None:
        super().__init__()
        channels, height, width = shape
        self.scale_and_shift = ScaleAndShift(network, channels)
        colour = (torch.arange(height)[:, None] + torch.arange(width)) % 2
        self.register_buffer("kept", (colour == int(change_first)).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._of(x)
        return (x + t) * s.exp(), s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        s, t = self._of(y)
        return y * (-s).exp() - t

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.scale_and_shift(x * self.kept)
        changes = 1 - self.kept
        return s * changes, t * changes
