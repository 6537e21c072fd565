"""Fully connected networks, plain and residual."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.errors import ConfigError
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.layers import Layers, make_activation


class FC(Network):
    r"""Multi-layer perceptron on the flattened input.

    Plain: :math:`h_l = \mathrm{dropout}(\sigma(\mathrm{BN}(W_l h_{l-1} + b_l)))` for every hidden width.
    Residual: :math:`h_0 = W_0 x + b_0`, then :math:`h_l = h_{l-1} + \mathrm{dropout}(\sigma(\mathrm{BN}(W_l
    h_{l-1} + b_l)))`, so that a network of L widths has L blocks and L + 1 hidden linear maps. Batch
    normalisation is optional.

    References:
        Residual form: the two-moons network of Mukhoti et al., arXiv:2102.11582.

    Args:
        data_shape: shape of one input, of any rank.
        num_classes: number of logits.
        hidden_dims: width of each hidden layer; all equal if `residual`.
        activation: name of the activation.
        negative_slope: slope of ``leaky_relu`` below zero.
        residual: add each hidden layer's input to its output.
        batch_norm: normalise before each activation.
        layers: makes the hidden linear layers; plain ones if not given.
        mod: LeakyReLU in place of ReLU.
        dropout: probability of dropping a hidden activation.

    Raises:
        ConfigError: `data_shape` is empty.
        ValueError: unknown activation, or unequal widths of a residual network.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (100, 100, 100, 100, 100),
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        residual: bool = False,
        batch_norm: bool = False,
        layers: Layers | None = None,
        mod: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape, widths = [int(n) for n in data_shape], [int(n) for n in hidden_dims]
        if not shape or min(shape) < 1:
            raise ConfigError(
                f"network fc needs inputs of at least one number, got data_shape {shape}; set fixed.data_shape"
            )
        if residual and len(set(widths)) != 1:
            raise ValueError(f"hidden_dims must be equal widths with residual=True, got {widths}")
        make = layers or Layers()
        width = math.prod(shape)
        self.stem: nn.Module = nn.Identity()
        if residual:
            self.stem = make.linear(width, widths[0])
            width = widths[0]
        self.residual = residual
        self.blocks = nn.ModuleList()
        for hidden in widths:
            # Dropout is there even at p = 0, so that runs with and without it have the same names of weights.
            block = [
                make_activation(activation, mod=mod, negative_slope=negative_slope),
                nn.Dropout(dropout),
            ]
            if batch_norm:
                block.insert(0, nn.BatchNorm1d(hidden))
            self.blocks.append(nn.Sequential(make.linear(width, hidden, bias=not batch_norm), *block))
            width = hidden
        self.head = nn.Linear(width, num_classes)

    def after_stages(self) -> Sequence[nn.Module]:
        return list(self.blocks)[1:]

    def features(self, x: Tensor) -> Tensor:
        """Last hidden layer ``[B, hidden_dims[-1]]`` of ``x: [B, *data_shape]``."""
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = h + block(h) if self.residual else block(h)
        return h
