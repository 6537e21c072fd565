"""Activation normalisation: one scale and shift a channel, set by the first training batch and then learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from uncertainty_est.densities.bijection import Bijection

# What rounding makes of the standard deviation of a channel that is constant.
_CONSTANT = 1e-6


class ActNorm(Bijection):
    r""":math:`y = (x + b) e^{a}` for each channel, with mean 0 and variance 1 on the first batch seen in training mode.

    Until then it is the identity. A channel that is constant on that batch is shifted only. Under DDP the first batch
    is that of all ranks together. Neither eval mode nor :meth:`inverse` ever sets the parameters. Whether they are set
    is saved with them.

    References:
        Kingma and Dhariwal, arXiv:1807.03039, section 3.1.

    Args:
        channels: size of axis 1 of the input, ``[B, channels, ...]``.
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))
        # The buffer is looked at once and after loading only: reading it at every step would make the host wait.
        self._look = True
        self.register_load_state_dict_post_hook(_look_again)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.pending():
            self._initialise(x.detach())
        bias, log_scale = self._per_channel(x)
        return (x + bias) * log_scale.exp(), self.log_scale.sum() * math.prod(x.shape[2:])

    def pending(self) -> bool:
        """Whether the next batch would set the parameters."""
        if not (self.training and self._look):
            return False
        self._look = not bool(self.initialised)
        return self._look

    def inverse(self, y: Tensor) -> Tensor:
        bias, log_scale = self._per_channel(y)
        return y * (-log_scale).exp() - bias

    def _per_channel(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.bias.view(shape), self.log_scale.view(shape)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        values = x.transpose(0, 1).flatten(1).double()
        count = values.new_full((1,), values.shape[1])
        sums = _over_ranks(torch.cat([values.sum(1), count]))
        mean = sums[:-1] / sums[-1]
        # From the mean, in a second reduction: a difference of second moments would cancel.
        variance = _over_ranks((values - mean[:, None]).square().sum(1)) / sums[-1]
        self.bias.copy_(-mean)
        std = variance.sqrt()
        self.log_scale.copy_(-torch.where(std > _CONSTANT, std, 1.0).log())
        self.initialised.fill_(True)


def _over_ranks(local: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(local)
    return local


def _look_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, ActNorm)
    module._look = True
