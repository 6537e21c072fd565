"""Affine coupling flows for tables, from the library zuko."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import zuko
from torch import Tensor, nn

from uncertainty_est.densities.base import ClassDensities, check_positive


class CouplingFlows(ClassDensities):
    r"""A RealNVP for each class: :math:`z'_A = z_A`, :math:`z'_B = z_B e^{s(z_A)} + t(z_A)`, A and B taking turns.

    Unlike the other flows on vectors it can be inverted, hence sampled.

    References:
        Dinh et al., arXiv:1605.08803.

    Args:
        num_classes: C.
        dim: D.
        num_layers: coupling maps of a flow.
        hidden_dims: widths of the networks that give s and t.
    """

    can_sample = True

    def __init__(
        self, num_classes: int, dim: int, num_layers: int = 8, hidden_dims: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__(num_classes, dim)
        check_positive(num_layers=num_layers)
        self.flows = nn.ModuleList(
            zuko.flows.RealNVP(dim, transforms=num_layers, hidden_features=list(hidden_dims))
            for _ in range(num_classes)
        )

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.stack([flow().log_prob(z) for flow in self.flows], dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.from_noise(torch.randn(n, self.dim, generator=generator, device=generator.device))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Samples ``[n, D]`` as functions of standard normal ``noise: [n, D]``, differentiable in the parameters.

        Rows take turns over the classes, so that those of normal noise are the equal mixture of the classes.
        """
        samples = torch.empty_like(noise)
        for c, flow in enumerate(self.flows):
            samples[c :: self.num_classes] = flow().transform.inv(noise[c :: self.num_classes])
        return samples
