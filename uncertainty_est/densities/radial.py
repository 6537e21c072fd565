"""Radial flows, with a backward pass written out: they are evaluated for every class in every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from uncertainty_est.densities.class_flows import ClassFlows, standard_normal

# Below the square of this, a distance has no direction in float32.
_SMALLEST_RADIUS = 1e-12


class RadialFlows(ClassFlows):
    r"""A stack of radial flows for each class.

    .. math:: z' = z + b\,h\,(z - c), \quad h = \frac1{a + r}, \quad r = \lVert z - c \rVert, \quad
        \ln \lvert\det J\rvert = (D - 1) \ln(1 + b h) + \ln(1 + b h - b h^2 r)

    with :math:`a = \mathrm{softplus}(\hat a)` and :math:`b = \mathrm{softplus}(\hat b) - a`, so that every map is
    invertible and both logarithms have positive arguments. Parameters start uniform in
    :math:`\pm 1/\sqrt D`. There is no inverse in closed form, hence no sampling.

    Forward and backward pass are one node of the autograd graph. It can be differentiated twice: the second time,
    plain operations are recorded.

    References:
        Rezende and Mohamed, arXiv:1505.05770, Eq. 14 and Appendix A.2.

    Args:
        num_classes: C.
        dim: D.
        num_layers: L, maps of a stack.
    """

    def __init__(self, num_classes: int, dim: int, num_layers: int = 8) -> None:
        super().__init__(num_classes, dim, num_layers)
        bound = 1 / math.sqrt(dim)
        self.centre = nn.Parameter(torch.empty(num_layers, dim, num_classes, 1).uniform_(-bound, bound))
        self.raw_a = nn.Parameter(torch.empty(num_layers, num_classes, 1).uniform_(-bound, bound))
        self.raw_b = nn.Parameter(torch.empty(num_layers, num_classes, 1).uniform_(-bound, bound))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """``a`` and ``b`` of all layers and classes, each ``[L, C, 1]``."""
        a = F.softplus(self.raw_a)
        return a, F.softplus(self.raw_b) - a

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _transform(z, *self.coefficients(), self.centre)

    def log_prob(self, z: Tensor) -> Tensor:
        a, b = self.coefficients()
        return _LogProb.apply(z.mT.contiguous().unsqueeze(1), a, b, self.centre).mT


def _transform(z: Tensor, a: Tensor, b: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The equations of :class:`RadialFlows` as they stand there, ``z: [D, 1, B]``."""
    gains, shrinks = [], []
    for a_l, b_l, centre_l in zip(a, b, centre, strict=True):
        offset = z - centre_l
        h = 1 / (a_l + (offset.square().sum(0) + _SMALLEST_RADIUS**2).sqrt())
        gain = b_l * h
        z = z + gain * offset
        gains.append(gain)
        shrinks.append(gain * a_l * h)  # b h - b h^2 r, because 1 - h r = a h
    log_det = (len(z) - 1) * torch.stack(gains).log1p() + torch.stack(shrinks).log1p()
    return z, log_det.sum(0)


class _LogProb(Function):
    """``[C, B]`` of ``z: [D, 1, B]``, ``a, b: [L, C, 1]``, ``centre: [L, D, C, 1]``.

    Letters as in :class:`RadialFlows`; ``gain`` is b h. Whatever needs no recursion over layers is computed for all
    of them at once.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
        start, shape = z, (len(a), a.shape[1], z.shape[-1])
        radius, h, gain = (z.new_empty(shape) for _ in range(3))
        offsets = []
        layers = zip(a.unbind(), b.unbind(), centre.unbind(), radius.unbind(), h.unbind(), gain.unbind(), strict=True)
        for a_l, b_l, centre_l, radius_l, h_l, gain_l in layers:
            offset = z - centre_l
            torch.sum(offset.square(), 0, out=radius_l)
            radius_l.add_(_SMALLEST_RADIUS**2).sqrt_()
            torch.add(radius_l, a_l, out=h_l).reciprocal_()
            torch.mul(h_l, b_l, out=gain_l)
            z = (offset * gain_l).add_(z)
            offsets.append(offset)
        log_det = gain.log1p().sum(0).mul_(len(z) - 1) + (gain * h).mul_(a).log1p_().sum(0)
        ctx.save_for_backward(start, a, b, centre, z, radius, h, gain, *offsets)
        return standard_normal(z, log_det)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start, a, b, centre, z, radius, h, gain, *offsets = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will itself be differentiated
            log_prob = standard_normal(*_transform(start, a, b, centre))
            inputs = [x if x.requires_grad else None for x in (start, a, b, centre)]
            wanted = [x for x in inputs if x is not None]
            grads = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=True))
            return tuple(None if x is None else next(grads) for x in inputs)

        # What the log-determinant alone contributes, with s = gain * a * h its second argument.
        ah = a * h
        through_s = grad / (1 + gain * ah)
        of_gain = grad * (len(z) - 1) / (1 + gain) + ah * through_s
        through_s = through_s * gain
        of_h = a * through_s
        h_squared = h.square()
        of_offset = -h_squared / radius  # dh/dr, and the direction of the offset is offset / radius

        grad_gain, grad_h = torch.empty_like(gain), torch.empty_like(h)
        grad_centre = torch.empty_like(centre)
        grad_z = z * -grad
        for i in range(len(offsets) - 1, -1, -1):
            torch.sum(grad_z * offsets[i], 0, out=grad_gain[i]).add_(of_gain[i])
            torch.mul(grad_gain[i], b[i], out=grad_h[i]).add_(of_h[i])
            grad_offset = (offsets[i] * (of_offset[i] * grad_h[i])).add_(grad_z * gain[i])
            torch.sum(grad_offset, -1, keepdim=True, out=grad_centre[i])
            grad_z += grad_offset
        grad_b = (grad_gain * h).sum(-1, keepdim=True)
        grad_a = (through_s * h - h_squared * grad_h).sum(-1, keepdim=True)
        return grad_z.sum(1, keepdim=True), grad_a, grad_b, grad_centre.neg_()
