"""The convolutional networks inside the coupling layers of image flows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.actnorm import ActNorm


class Normalised(nn.Module):
    """A convolution that keeps the size, then :class:`ActNorm`.

    Unlike batch normalisation, it does the same thing in training, in eval mode and when sampling.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        # The normalisation brings the bias.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = ActNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_channels, H, W]`` of ``x: [B, in_channels, H, W]``."""
        if self.norm.pending():
            self.norm(self.conv(x))
        # Both are linear, and one map keeps one activation instead of three for the gradient.
        scale = self.norm.log_scale.exp()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.norm.bias * scale, padding=self.conv.padding)


class ConvNet(nn.Module):
    """Three layers, 3x3 - 1x1 - 3x3, whose last one puts out zeros at first.

    References:
        Kingma and Dhariwal, arXiv:1807.03039, section 3.3 and the authors' code.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        hidden_channels: of the two hidden layers.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.first = Normalised(in_channels, hidden_channels, 3)
        self.second = Normalised(hidden_channels, hidden_channels, 1)
        self.last = zero_conv(hidden_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_channels, H, W]`` of ``x: [B, in_channels, H, W]``."""
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class ResidualNet(nn.Module):
    """Residual blocks of two 3x3 convolutions between a 3x3 and a 1x1 one, which puts out zeros at first.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, section 4.1.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        hidden_channels: of everything between.
        num_blocks: number of blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.first = Normalised(in_channels, hidden_channels, 3)
        self.blocks = nn.ModuleList(_Block(hidden_channels) for _ in range(num_blocks))
        self.last = zero_conv(hidden_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_channels, H, W]`` of ``x: [B, in_channels, H, W]``."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(F.relu(x))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Normalised(channels, channels, 3)
        self.second = Normalised(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def zero_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps the size, with weights and biases that are zero at first."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
