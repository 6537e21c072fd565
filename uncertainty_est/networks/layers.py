"""What networks are put together from: the layer factory, activations, and the parameter-free shortcut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Layers:
    """Makes the convolutions and linear layers of a network; a subclass bounds their norms."""

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
        init: Callable[[nn.Conv2d], object] | None = None,
    ) -> nn.Conv2d:
        """A 2-d convolution ``[B, in_channels, *input_size] -> [B, out_channels, *output_size]``.

        Args:
            in_channels: channels of its input.
            out_channels: channels of its output.
            kernel_size: height and width of the kernel.
            stride: step of the kernel.
            padding: zeros on each side.
            bias: whether to add a bias.
            input_size: height and width of its input, on which the operator norm depends.
            init: draws its weight and bias, in place; PyTorch's own draw if not given.
        """
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        if init is not None:
            init(conv)
        return conv

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
        """A linear layer ``[B, in_features] -> [B, out_features]``."""
        return nn.Linear(in_features, out_features, bias=bias)


def make_activation(name: str, *, mod: bool = False, negative_slope: float = 0.01) -> nn.Module:
    """An activation by its name.

    Args:
        name: one of :data:`ACTIVATIONS`.
        mod: give LeakyReLU where ReLU is asked for; every other activation has non-zero slopes already.
        negative_slope: slope of LeakyReLU below zero.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(f"'{known}'" for known in ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, got '{name}'")
    if name == "leaky_relu" or (mod and name == "relu"):
        return nn.LeakyReLU(negative_slope)
    return ACTIVATIONS[name]()


def kaiming_fan_out(conv: nn.Conv2d) -> None:
    """Draw the weight of a convolution without bias from Kaiming's normal distribution, by its outputs."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def xavier_relu(conv: nn.Conv2d) -> None:
    r"""Draw the weight of a convolution from Xavier's uniform distribution of gain :math:`\sqrt 2`; biases are 0."""
    nn.init.xavier_uniform_(conv.weight, gain=2**0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """`size` over `stride`, rounded up: what a convolution gives that would keep the size at stride 1."""
    return -(-size[0] // stride), -(-size[1] // stride)


class PooledShortcut(nn.Module):
    """Down-sampling shortcut without weights: average pooling, then zeros for the channels that are missing.

    An axis of odd length is sub-sampled instead, as pooling would drop its last row. For even lengths the
    mean of every channel is preserved.

    References:
        Mukhoti et al., arXiv:2102.11582 (architecture changes for sensitivity).

    Args:
        in_channels: channels of its input.
        out_channels: channels of its output, at least as many.
        stride: factor of the down-sampling.
        input_size: height and width of its input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, input_size: tuple[int, int]) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"out_channels must be at least in_channels, {in_channels}, got {out_channels}")
        self.missing = out_channels - in_channels
        self.stride = stride
        height, width = (stride if n % stride == 0 else 1 for n in input_size)
        self.kernel_size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.kernel_size, self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.missing))

    def extra_repr(self) -> str:
        return f"missing={self.missing}, stride={self.stride}, kernel_size={self.kernel_size}"


@dataclass(frozen=True)
class ResidualParts:
    """Makes what all blocks of a residual network share; a subclass says how its convolutions are made.

    Attributes:
        layers: makes convolutions.
        batch_norm: normalise over batches.
        activation: its name.
        negative_slope: slope of ``leaky_relu`` below zero.
        mod: the changes for sensitivity: LeakyReLU in place of ReLU, and shortcuts without weights.
        dropout: probability of dropping an activation within a block.
    """

    layers: Layers
    batch_norm: bool
    activation: str
    negative_slope: float
    mod: bool
    dropout: float

    def act(self) -> nn.Module:
        """The activation."""
        return make_activation(self.activation, mod=self.mod, negative_slope=self.negative_slope)

    def shortcut(self, c_in: int, c_out: int, stride: int, size: tuple[int, int]) -> nn.Module:
        """What is added to a block's output: ``[B, c_in, *size] -> [B, c_out, *strided(size, stride)]``."""
        if stride == 1 and c_in == c_out:
            return nn.Identity()
        if self.mod:
            return PooledShortcut(c_in, c_out, stride, size)
        return self.projection(c_in, c_out, stride, size)

    def projection(self, c_in: int, c_out: int, stride: int, size: tuple[int, int]) -> nn.Module:
        """A shortcut with weights, where the shape changes."""
        raise NotImplementedError
