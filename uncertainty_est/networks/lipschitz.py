"""Layers with softly bounded operator norms (spectral normalisation)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from uncertainty_est.networks.layers import Layers

# The start vector is random and would make a meaningless norm; later passes follow it with few iterations.
INITIAL_ITERATIONS = 15

Init = Callable[[nn.Conv2d], object]


class SpectralLayers(Layers):
    r"""Makes layers whose weights are divided where their operator norm :math:`\sigma` exceeds a bound.

    .. math:: \hat W = W / \max(1, \sigma(W) / \text{coeff})

    :math:`\sigma = u^\top W v` for singular vectors u, v, which power iteration tracks: `n_power_iterations`
    in every pass in training mode, none in evaluation mode. The gradient flows through W and not through u,
    v. Linear layers and 1x1 convolutions are bounded by the norm of their matrix, larger kernels by that of
    the convolution at its input size (divided by another 1e-5 more, as in the reference). Power iteration
    approaches the norm from below, and batch normalisation is left alone: the network is not strictly
    :math:`\text{coeff}^L`-Lipschitz.

    References:
        Miyato et al., arXiv:1802.05957. Soft bound: Gouk et al., arXiv:1804.04368, and Behrmann et al.,
        arXiv:1811.00995. Use: Mukhoti et al., arXiv:2102.11582.

    Args:
        coeff: the bound; weights below it stay as they are.
        n_power_iterations: iterations of one pass in training mode.

    Raises:
        ValueError: a bound or number of iterations that is not positive.
    """

    def __init__(self, coeff: float = 3.0, n_power_iterations: int = 1) -> None:
        if not coeff > 0:
            raise ValueError(f"coeff must be positive, got {coeff}")
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations must be at least 1, got {n_power_iterations}")
        self.coeff = coeff
        self.n_power_iterations = n_power_iterations

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        input_size: tuple[int, int],
        init: Init | None = None,
    ) -> nn.Conv2d:
        """A convolution as :meth:`Layers.conv` makes it, with its norm softly bounded."""
        kind = SpectralConv1x1 if kernel_size == 1 else SpectralConv2d
        conv = kind(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        if init is not None:
            init(conv)
        in_shape = (in_channels,) if kernel_size == 1 else (1, in_channels, *input_size)
        conv.track(in_shape, self.coeff, self.n_power_iterations)
        return conv

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
        """A linear layer with its norm softly bounded."""
        linear = SpectralLinear(in_features, out_features, bias=bias)
        linear.track((in_features,), self.coeff, self.n_power_iterations)
        return linear


class SpectralNorm(nn.Module):
    """Mixin of a layer: tracks the leading singular vectors ``u``, ``v`` of the map that ``weight`` defines.

    The map is here the matrix ``weight.flatten(1)``. :meth:`track` must be called once the weight is drawn.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    slack = 0.0

    def track(self, in_shape: tuple[int, ...], coeff: float, n_power_iterations: int) -> None:
        """Start tracking from a random ``v`` of shape `in_shape`."""
        self.coeff = coeff
        self.n_power_iterations = n_power_iterations
        weight = self.weight.detach()
        v = torch.randn(in_shape, dtype=weight.dtype, device=weight.device)
        self.register_buffer("v", v)
        self.register_buffer("u", self.operator(weight, v).to(weight.dtype))
        self.power_iterate(INITIAL_ITERATIONS)

    def operator(self, weight: Tensor, v: Tensor) -> Tensor:
        """The map itself, from the shape of ``v`` to that of ``u``."""
        return weight.flatten(1) @ v

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """Its transpose, from the shape of ``u`` to that of ``v``."""
        return u @ weight.flatten(1)

    @torch.no_grad()
    def power_iterate(self, n: int) -> None:
        """Move ``u`` and ``v`` by `n` iterations towards the leading singular vectors, in place."""
        weight, u = _exact(self.weight), _exact(self.u)
        v = u
        with torch.autocast(weight.device.type, enabled=False):
            for _ in range(n):
                v = _normalize(self.adjoint(weight, u))
                u = _normalize(self.operator(weight, v))
        # In place: DDP broadcasts the tensors that it saw at the start.
        self.u.copy_(u)
        self.v.copy_(v)

    @property
    def sigma(self) -> Tensor:
        r"""The tracked norm :math:`\sigma = \langle u, W v \rangle`, a scalar, differentiable through W."""
        # The next pass changes u and v in place; copies keep them as this pass's backward needs them.
        u, v = self.u.clone(), self.v.clone()
        with torch.autocast(u.device.type, enabled=False):
            return (_exact(u) * self.operator(_exact(self.weight), _exact(v))).sum()

    def bounded_weight(self) -> Tensor:
        """The weight that the layer applies: of norm at most ``coeff``, as far as ``sigma`` is exact."""
        if self.training:
            self.power_iterate(self.n_power_iterations)
        return self.weight / ((self.sigma / self.coeff).clamp(min=1.0) + self.slack)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, coeff={self.coeff}"


class SpectralLinear(SpectralNorm, nn.Linear):
    """Linear layer whose matrix norm is softly bounded, made by :class:`SpectralLayers`."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features] -> [..., out_features]``."""
        return F.linear(x, self.bounded_weight(), self.bias)


class SpectralConv1x1(SpectralNorm, nn.Conv2d):
    """1x1 convolution whose matrix norm is softly bounded, made by :class:`SpectralLayers`."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W] -> [B, out_channels, H', W']``."""
        return F.conv2d(x, self.bounded_weight(), self.bias, self.stride, self.padding)


class SpectralConv2d(SpectralNorm, nn.Conv2d):
    """Convolution whose operator norm at one input size is softly bounded, made by :class:`SpectralLayers`.

    References:
        Gouk et al., arXiv:1804.04368 (power iteration with the convolution and its transpose).
    """

    slack = 1e-5

    def operator(self, weight: Tensor, v: Tensor) -> Tensor:
        """The convolution without bias, ``[1, in_channels, H, W] -> [1, out_channels, H', W']``."""
        return F.conv2d(v, weight, None, self.stride, self.padding)

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """The transposed convolution, ``[1, out_channels, H', W'] -> [1, in_channels, H, W]``."""
        # A convolution's gradient is its transpose; it knows the size to come back to, as stride 2 does not.
        return conv2d_input(self.v.shape, weight, u, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W] -> [B, out_channels, H', W']``.

        Raises:
            ValueError: an input of another height or width than the norm is tracked for.
        """
        if x.shape[-2:] != self.v.shape[-2:]:
            made, got = ("x".join(map(str, size[-2:])) for size in (self.v.shape, x.shape))
            raise ValueError(f"this spectral convolution was made for inputs of {made}, got {got}")
        return F.conv2d(x, self.bounded_weight(), self.bias, self.stride, self.padding)


def _exact(x: Tensor) -> Tensor:
    # Half precision is too coarse for a norm that decides whether weights are divided.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalize(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp(min=1e-12)
