"""Normalising flows on tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.densities.base import ClassDensities
from uncertainty_est.models.density import DensityMethod


class NormFlow(DensityMethod):
    r"""Density of the (flattened) inputs by a stack of invertible maps to a standard normal.

    Which maps is for `density` to say: radial, planar, autoregressive or coupling. Score: ``p(x)``.

    References:
        Rezende and Mohamed, arXiv:1505.05770 (radial, planar). Dinh et al., arXiv:1605.08803 (coupling).

    Args:
        density: makes the density, or the densities of C classes, from ``num_classes`` and ``dim`` (a ``_partial_``
            node of one of the flows on vectors in :mod:`uncertainty_est.densities`).
        data_shape: shape of one input.
        num_classes: 1, or C for one density of each class, see :class:`~uncertainty_est.models.density.DensityMethod`.
        discriminative: the loss with C densities.
    """

    density: ClassDensities

    def __init__(
        self,
        density: Callable[..., ClassDensities],
        data_shape: Sequence[int],
        num_classes: int = 1,
        discriminative: bool = True,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(data_shape, num_classes, discriminative, optimizer, scheduler)
        self.density = density(num_classes=num_classes, dim=math.prod(self.data_shape))
        self.can_sample = self.density.can_sample

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density.log_prob(x.flatten(1))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.density.sample(n, generator).view(n, *self.data_shape)
