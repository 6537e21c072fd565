"""Chains that go on from one training step to the next: where they stopped is kept in a registered buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.errors import ConfigError


class Draw(NamedTuple):
    """States to start chains from: ``x: [n, *data_shape]``, and where to put their ends, ``slots: [n]``."""

    x: Tensor
    slots: Tensor


class ReplayBuffer(nn.Module):
    """States of `size` chains, part of a model's saved state and on its device.

    The chains of C classes are C blocks of equal length of the same buffer, so that its memory does not grow with C.

    References:
        Persistent chains: Tieleman, 2008. Buffer with new beginnings: Du and Mordatch, arXiv:1903.08689.

    Args:
        data_shape: shape of one state.
        size: number of states, rounded down to a multiple of `num_classes`.
        num_classes: number of blocks.
        reinit_freq: probability that a drawn chain begins anew.
        low: new chains begin uniformly between `low` and `high` in every coordinate.
        high: see `low`.

    Raises:
        ValueError: fewer states than classes, no probability, or an empty interval.
    """

    samples: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        size: int = 10_000,
        num_classes: int = 1,
        reinit_freq: float = 0.05,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= num_classes <= size:
            raise ValueError(f"size must be at least num_classes, {num_classes}, which must be positive; got {size}")
        if not 0 <= reinit_freq <= 1:
            raise ValueError(f"reinit_freq must lie in [0, 1], got {reinit_freq}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be less than high, both finite, got {low} and {high}")
        self.num_classes = num_classes
        self.block = size // num_classes
        self.reinit_freq = reinit_freq
        self.low = low
        self.high = high
        shape = [int(n) for n in data_shape]
        self.register_buffer("samples", torch.empty(self.block * num_classes, *shape).uniform_(low, high))

    def __len__(self) -> int:
        return len(self.samples)

    def fresh(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, *data_shape]``, new beginnings."""
        new = torch.empty(n, *self.samples.shape[1:], dtype=self.samples.dtype, device=self.samples.device)
        return new.uniform_(self.low, self.high, generator=generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Begin all chains anew."""
        self.samples.copy_(self.fresh(len(self), generator))

    def classes(self, slots: Tensor) -> Tensor:
        """The class ``[n]`` of each of ``slots: [n]``."""
        return slots // self.block

    def draw(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Draw:
        """Different slots, and where their chains are or, with probability `reinit_freq`, begin anew.

        Args:
            n: how many.
            y: ``[n]`` classes, from whose blocks to draw; from the whole buffer if not given. Only a class that is
                asked for more often than its block is long gets some slots more than once.
            generator: on the buffer's device; PyTorch's own if not given.

        Raises:
            ConfigError: `n` exceeds the buffer.
        """
        if n > len(self):
            raise ConfigError(
                f"fixed.model_config.buffer.size: a batch of {n} does not fit into a buffer of {len(self)}; enlarge it"
                f" or lower fixed.batch_size"
            )
        device = self.samples.device
        if y is None:
            slots = torch.randperm(len(self), generator=generator, device=device)[:n]
        else:
            order = torch.rand(self.num_classes, self.block, generator=generator, device=device).argsort(dim=1)
            place = F.one_hot(y, self.num_classes).cumsum(0).gather(1, y.unsqueeze(1)).squeeze(1) - 1
            slots = y * self.block + order[y, place % self.block]
        anew = torch.rand(n, generator=generator, device=device) < self.reinit_freq
        kept = self.samples[slots]
        return Draw(torch.where(anew.view(-1, *[1] * (kept.ndim - 1)), self.fresh(n, generator), kept), slots)

    @torch.no_grad()
    def write(self, slots: Tensor, x: Tensor) -> None:
        """Keep ``x: [n, *data_shape]`` in ``slots: [n]``."""
        self.samples[slots] = x.to(self.samples)
