"""Planar flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.class_flows import ClassFlows


class PlanarFlows(ClassFlows):
    r"""A stack of planar flows for each class.

    .. math:: z' = z + \hat u \tanh(s), \quad s = w^\top z + b, \quad
        \ln \lvert\det J\rvert = \ln\bigl(1 + (1 - \tanh^2 s)\, w^\top \hat u\bigr)

    :math:`\hat u = u + (m(w^\top u) - w^\top u)\, w / \lVert w \rVert^2` with :math:`m(t) = \mathrm{softplus}(t) - 1`
    has :math:`w^\top \hat u > -1`: every map is invertible. Parameters start uniform in :math:`\pm 1/\sqrt D`. There
    is no inverse in closed form, hence no sampling.

    References:
        Rezende and Mohamed, arXiv:1505.05770, Eq. 10 and Appendix A.1.

    Args:
        num_classes: C.
        dim: D.
        num_layers: maps of a stack.
    """

    def __init__(self, num_classes: int, dim: int, num_layers: int = 8) -> None:
        super().__init__(num_classes, dim, num_layers)
        bound = 1 / math.sqrt(dim)
        self.u = nn.Parameter(torch.empty(num_layers, dim, num_classes, 1).uniform_(-bound, bound))
        self.w = nn.Parameter(torch.empty(num_layers, dim, num_classes, 1).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(num_layers, num_classes, 1).uniform_(-bound, bound))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        wu = (self.w * self.u).sum(1)
        slope = F.softplus(wu) - 1  # w^T u-hat, above -1
        along = (slope - wu) / self.w.square().sum(1).clamp(min=1e-12)
        u = self.u + along.unsqueeze(1) * self.w
        steps = []
        for u_l, w_l, b_l in zip(u, self.w, self.b, strict=True):
            step = ((w_l * z).sum(0) + b_l).tanh()
            z = z + u_l * step
            steps.append(step)
        log_det = ((1 - torch.stack(steps).square()) * slope).log1p()
        return z, log_det.sum(0)
