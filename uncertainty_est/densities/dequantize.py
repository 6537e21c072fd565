"""Between pixels of so many grey levels and the continuous numbers that a density needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SEED = 0


class Dequantize(nn.Module):
    r"""Pixels :math:`x = k / (L - 1)` of L levels to :math:`(k + u) / L` in [0, 1].

    In training u is uniform on [0, 1), drawn afresh at every call. In eval mode u takes a few values that never change,
    so that scores repeat: one such draw, the same for all images, and the draw moved on by equal parts of 1.

    The cells of the levels tile [0, 1]: a density integrated over a cell is the probability of the pixel, and
    :math:`\mathbb E_u \ln p((k + u) / L) - \ln L` is a lower bound of its logarithm (Jensen). One draw that moves on
    visits all of each pixel's cell, which comes far nearer to the expectation than as many independent draws. The
    middle of the cell, u = 1/2, gives no bound: where the density bends, it flatters the model.

    An input between two levels counts as the nearer one. The gradient with respect to ``x`` is that of the line
    through all levels, since steps have none.

    References:
        Theis, van den Oord and Bethge, arXiv:1511.01844, section 3.1.

    Args:
        shape: of one image, ``(C, H, W)``.
        levels: L.
        scoring_draws: K, values of u in eval mode.

    Raises:
        ValueError: `levels` below 2, or no draw.
    """

    noise: Tensor

    def __init__(self, shape: Sequence[int], levels: int = 256, scoring_draws: int = 2) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        if scoring_draws < 1:
            raise ValueError(f"scoring_draws must be at least 1, got {scoring_draws}")
        self.levels = levels
        # A seed of its own: the same for all densities and runs, whose scores can then be compared.
        first = torch.rand(*shape, generator=torch.Generator().manual_seed(_SEED))
        parts = torch.arange(scoring_draws).view(-1, *[1] * len(shape)) / scoring_draws
        self.register_buffer("noise", ((first + parts) % 1).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """Continuous pixels ``[K, B, C, H, W]`` of ``x: [B, C, H, W]`` in [0, 1]; K is 1 in training."""
        position = x * (self.levels - 1)
        level = position + (position.round() - position).detach()
        u = torch.rand_like(level)[None] if self.training else self.noise
        return (level + u) / self.levels

    def inverse(self, y: Tensor) -> Tensor:
        """The pixels in [0, 1] whose cells hold ``y``; what is outside of all cells goes to the nearest."""
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)
