"""The units that pixels have before a data set's transform, for distances and steps that are given in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RawUnits(nn.Module):
    r"""The map of an image transform between network inputs and pixels in [0, 1], :math:`x = (u - m) / s`.

    Moves with the module that owns it and leaves nothing in its state.

    Attributes:
        mean: m, a scalar or ``[C, 1, 1]``, float32.
        std: s, likewise.

    Args:
        mean: as ``fixed.transform.mean``: for each channel, or one number. 0 for tables.
        std: as ``fixed.transform.std``, positive. 1 for tables, whose units are the network's own.

    Raises:
        ValueError: a standard deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(values, dtype=torch.float32)
            self.register_buffer(name, tensor.view(-1, 1, 1) if tensor.ndim else tensor, persistent=False)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {std}")

    def from_network(self, x: Tensor) -> Tensor:
        """Network inputs ``[B, *data_shape]`` in raw units, neither rounded nor clamped."""
        return x * self.std + self.mean

    def to_network(self, u: Tensor) -> Tensor:
        """Raw units ``[B, *data_shape]`` as network inputs."""
        return (u - self.mean) / self.std
