"""What methods share that squeeze an input through a few latent numbers and restore it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Method, State, load_network
from uncertainty_est.networks.base import Network


class EncoderDecoder(Method):
    r"""Base of methods with an encoder, a latent vector of length `latent_dim`, and a decoder.

    Args:
        data_shape: shape of one input, D numbers.
        network: builds the encoder; called with ``num_classes``, the number of its outputs.
        decoder: builds the decoder; called with ``latent_dim`` and ``data_shape``.
        latent_dim: length of the latent vector; :math:`\lfloor \sqrt D \rfloor` if not given.

    Raises:
        ValueError: `latent_dim` below 1.
    """

    outputs_per_latent: ClassVar[int]
    """Outputs of the encoder for each latent dimension."""

    def __init__(
        self,
        data_shape: Sequence[int],
        network: Callable[..., Network],
        decoder: Callable[..., nn.Module],
        latent_dim: int | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        shape = tuple(int(n) for n in data_shape)
        self.data_dim = math.prod(shape)
        self.latent_dim = math.isqrt(self.data_dim) if latent_dim is None else latent_dim
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.network = network(num_classes=self.outputs_per_latent * self.latent_dim)
        self.decoder = decoder(latent_dim=self.latent_dim, data_shape=shape)

    def init_from(self, states: list[State]) -> None:
        """Take over encoder and decoder of one finished run of the same method.

        Raises:
            ConfigError: not one run, or weights that do not fit.
        """
        if len(states) != 1:
            raise ConfigError(f"fixed.init_from: {type(self).__name__} takes one run, got {len(states)}")
        decoder = {key: value for key, value in states[0].items() if key.startswith("decoder.")}
        load_network(self, decoder, prefix="decoder.")
        load_network(self, {k: v for k, v in states[0].items() if k not in decoder}, prefix="network.")

    def decode(self, z: Tensor) -> Tensor:
        """Inputs ``[B, *data_shape]`` float32 of latent vectors ``z: [B, latent_dim]``."""
        return self.decoder(z).float()


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances ``[B]`` of flattened ``x, y: [B, *data_shape]``; where it is 0, so is its gradient."""
    return torch.linalg.vector_norm((x - y).flatten(1), dim=1)
