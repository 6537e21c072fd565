"""What densities over vectors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class ClassDensities(nn.Module, ABC):
    """C densities over one space of vectors; C = 1 is a single one.

    Args:
        num_classes: C.
        dim: D.

    Raises:
        ValueError: a number below 1.
    """

    can_sample = False

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, dim=dim)
        self.num_classes = num_classes
        self.dim = dim

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-densities ``[B, C]`` in nats of ``z: [B, D]``, in its floating type."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``[n, D]`` from the equal mixture of the classes; only where :attr:`can_sample`."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse to sample by")


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
