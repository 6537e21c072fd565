"""One density for each class, of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class PerClass(nn.Module):
    """C densities side by side, :math:`p(x \\mid c)`; C = 1 is one density of everything.

    Args:
        densities: modules with ``log_prob(x) -> [B]`` and, for :meth:`sample`, ``sample(n, generator)``.

    Raises:
        ValueError: no density.
    """

    def __init__(self, densities: Sequence[nn.Module]) -> None:
        super().__init__()
        if not densities:
            raise ValueError("densities must hold at least one density")
        self.densities = nn.ModuleList(densities)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``[B, C]`` of ``x: [B, ...]``."""
        members: Any = self.densities
        return torch.stack([density.log_prob(x) for density in members], dim=-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``[n, ...]`` from the mixture of all classes with equal shares.

        Args:
            n: how many.
            generator: on the densities' device; draws come from it alone.
        """
        members: Any = self.densities
        c = torch.randint(len(members), (n,), generator=generator, device=generator.device)
        counts = torch.bincount(c, minlength=len(members)).tolist()
        draws = [density.sample(count, generator) for density, count in zip(members, counts, strict=True)]
        # Draws come class by class; each goes where its class was drawn.
        return torch.cat(draws)[c.argsort(stable=True).argsort()]
