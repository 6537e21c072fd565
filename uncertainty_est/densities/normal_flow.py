"""A density of continuous inputs through a bijection to the standard normal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uncertainty_est.densities.bijection import Bijection
from uncertainty_est.densities.image_flow import Stage


class NormalFlow(nn.Module):
    r""":math:`\ln p(x) = \ln \mathcal N(T(x); 0, I) + \ln |\det J_T(x)|` for bijections T of inputs of one shape.

    Args:
        shape: of one input.
        bijections: T, first to last; none of them changes the shape.
    """

    def __init__(self, shape: Sequence[int], bijections: Sequence[Bijection]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.bijections = Stage(bijections)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``[B]`` in nats of ``x: [B, *shape]``, differentiable."""
        z, log_det = self.bijections(x)
        z = z.flatten(1)
        return log_det - 0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``[n, *shape]``.

        Args:
            n: how many.
            generator: on the density's device; draws come from it alone.
        """
        like = next(self.parameters())
        z = torch.randn(n, *self.shape, generator=generator, device=like.device, dtype=like.dtype)
        return self.bijections.inverse(z)
