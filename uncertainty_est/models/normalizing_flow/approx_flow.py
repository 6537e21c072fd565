"""Normalising flows of linear maps with orthogonal factors, exact or approximate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.densities.linear_flow import EXACT_KINDS, LinearMaps
from uncertainty_est.densities.normal_flow import NormalFlow
from uncertainty_est.densities.per_class import PerClass
from uncertainty_est.models.base import Batch
from uncertainty_est.models.density import DensityMethod


class ApproxFlow(DensityMethod):
    r"""Density of tables by linear maps with orthogonal factors and an elementwise bend between them. Score: ``p(x)``.

    ``svd`` and ``svd_mat_exp`` are normalised densities. ``reparameterized`` and ``orthogonal`` are approximations:
    their loss has another part, ``orthogonality``, and the name of their quantity in the tables says that no density
    is behind it. See :class:`~uncertainty_est.densities.linear_flow.LinearMaps`.

    Args:
        data_shape: shape of one input, which is flattened to D numbers.
        num_classes: 1 for one density of all data, C for one for each class.
        discriminative: the loss with C densities.
        flow: ``svd``, ``svd_mat_exp``, ``reparameterized`` or ``orthogonal``.
        num_layers: L, linear maps.
        negative_slope: slope, far below zero, of the function between the maps; 0 is ELU, which is not onto, so that
            the density has a mass below 1 and cannot be sampled. The start, if it is learnt.
        learn_slope: learn it, for each number of each layer.
        penalty_weight: of :meth:`~uncertainty_est.densities.linear_flow.LinearMaps.penalty` in the approximations.
            Below :math:`L \sqrt D / 2` a likelihood without bound is worth more than orthogonal factors.

    Raises:
        ValueError: an unknown flow, or a number out of its range.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 1,
        discriminative: bool = True,
        flow: str = "svd",
        num_layers: int = 20,
        negative_slope: float = 1.0,
        learn_slope: bool = True,
        penalty_weight: float = 100.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(data_shape, num_classes, discriminative, optimizer, scheduler)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"penalty_weight must be finite and at least 0, got {penalty_weight}")
        self.is_exact = flow in EXACT_KINDS
        self.penalty_weight = penalty_weight
        self.can_sample = negative_slope > 0
        dim = math.prod(self.data_shape)
        self.maps = [LinearMaps(dim, num_layers, flow, negative_slope, learn_slope) for _ in range(num_classes)]
        self.density = PerClass([NormalFlow([dim], [maps]) for maps in self.maps])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density.log_prob(x.flatten(1))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.density.sample(n, generator).view(n, *self.data_shape)

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        parts, probs = super().validate_batch(batch)
        if not self.is_exact:
            penalties = torch.stack([maps.penalty() for maps in self.maps])
            parts["orthogonality"] = self.penalty_weight * penalties.mean()
        return parts, probs

    def quantities(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        note = "" if self.is_exact else " (not normalised)"
        return {f"{name}{note}": values for name, values in super().quantities(scores).items()}
