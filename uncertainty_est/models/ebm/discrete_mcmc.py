"""Energy-based model of inputs with a few levels, trained with Gibbs sampling that follows gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ebm.mcmc import MCMC
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.gibbs import GibbsWithGradients
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.samplers.sgld import Chain


class DiscreteMCMC(MCMC):
    """:class:`MCMC` of inputs in levels: grey levels of an image, or bins of a table's features.

    In every coordinate the interval in which the buffer's chains begin is cut into `num_categories` bins of equal
    width, and the network sees the number of the bin, one-hot: a table ``[D]`` becomes ``[D, V]``, an image
    ``[C, H, W]`` becomes V times as many channels. What lies outside counts as the outermost bin: inputs that differ
    only there, or within bins, get the same score. Samples are middles of bins.

    Scores: as :class:`EnergyModel`; ``p(x)`` is the unnormalised log-probability of the bins.

    References:
        Grathwohl et al., arXiv:2102.04509 (the sampler and its use in training).

    Args:
        network: called with the shape of the one-hot input, ``data_shape`` (a ``_partial_`` node).
        data_shape: shape of one input.
        num_categories: V, at least 2.
        sampler: moves the chains.
        buffer: keeps the chains; the first bin begins at its `low`, the last one ends at its `high`.
        pxsgld: see :class:`MCMC`, as all that follow.

    Raises:
        ValueError: a value outside its range, nothing to train, or classes asked for where there are none.
    """

    def __init__(
        self,
        network: Callable[..., Network],
        data_shape: Sequence[int],
        num_categories: int,
        sampler: GibbsWithGradients,
        buffer: ReplayBuffer,
        pxsgld: float = 1.0,
        pyxce: float = 0.0,
        p_control: float = 0.0,
        entropy_reg: float = 0.0,
        label_smoothing: float = 0.0,
        class_cond_p_x_sample: bool = False,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        if num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}")
        shape = [int(n) for n in data_shape]
        one_hot = [shape[0] * num_categories, *shape[1:]] if len(shape) == 3 else [math.prod(shape), num_categories]
        super().__init__(
            network(data_shape=one_hot),
            sampler,
            buffer,
            pxsgld=pxsgld,
            pyxce=pyxce,
            p_control=p_control,
            entropy_reg=entropy_reg,
            label_smoothing=label_smoothing,
            class_cond_p_x_sample=class_cond_p_x_sample,
            warmup_steps=warmup_steps,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.data_shape = tuple(shape)
        self.num_categories = num_categories
        self.low = buffer.low
        self.high = buffer.high

    def encode(self, x: Tensor) -> Tensor:
        """One-hot numbers of bins, ``[B, L, V]`` float32, of ``x: [B, *data_shape]``."""
        place = (x.flatten(1).float() - self.low) * (self.num_categories / (self.high - self.low))
        # NaN has no bin; it must not become an index.
        bins = place.nan_to_num().clamp(0, self.num_categories - 1).long()
        return F.one_hot(bins, self.num_categories).float()

    def decode(self, sites: Tensor) -> Tensor:
        """Middles of bins ``[B, *data_shape]`` of ``sites: [B, L, V]``."""
        width = (self.high - self.low) / self.num_categories
        return (self.low + width * (sites.argmax(-1) + 0.5)).view(-1, *self.data_shape)

    def logits_of(self, sites: Tensor) -> Tensor:
        """Logits ``[B, C]`` of ``sites: [B, L, V]``."""
        if len(self.data_shape) == 3:
            channels, height, width = self.data_shape
            split = sites.view(-1, channels, height, width, self.num_categories)
            sites = split.permute(0, 1, 4, 2, 3).reshape(len(sites), -1, height, width)
        return self.network(sites).float()

    def logits(self, x: Tensor) -> Tensor:
        return self.logits_of(self.encode(x))

    def run_chains(self, x: Tensor, y: Tensor | None, generator: torch.Generator | None) -> Chain:
        # The sampler is exact only if the differences of F that it accepts by are.
        with scoring_mode(self.network), torch.autocast(x.device.type, enabled=False):
            sites = self.encode(x)
            chain = self.sampler(lambda sites: self.chain_density(self.logits_of(sites), y), sites, generator)
        return Chain(self.decode(chain.x), chain.statistics)
