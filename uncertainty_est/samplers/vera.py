"""A generator with a density, and an estimate of its entropy's gradient by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Draw:
    """Samples of a :class:`LatentGenerator`.

    Attributes:
        x: ``[B, *data_shape]``, differentiable in the generator's parameters.
        h: ``[B, latent_dim]``, the latent vectors that x was made from.
        statistics: means and variances of this batch, by the name of the batch normalisation's buffer; they belong to
            the function g that maps h to x.
    """

    x: Tensor
    h: Tensor
    statistics: dict[str, Tensor]


class LatentGenerator(nn.Module):
    r"""Distribution :math:`q(x) = \int \mathcal N(x; g(h), \sigma^2 I)\, \mathcal N(h; 0, I)\, dh` of inputs.

    :math:`\ln \sigma` is a parameter that starts from its lower bound; :meth:`clamp_sigma` keeps it in its range. g is
    always evaluated in full precision: rounding to half precision is as large as :math:`\sigma`.

    References:
        Grathwohl et al., arXiv:2010.04230, Section 3.

    Args:
        network: called with ``latent_dim`` and ``data_shape``, makes g: ``[B, latent_dim] -> [B, *data_shape]``.
        data_shape: shape of one input.
        latent_dim: length of h; as many as numbers in an input if not given.
        min_sigma: smallest :math:`\sigma`.
        max_sigma: largest :math:`\sigma`.

    Raises:
        ValueError: bounds that are no range of positive numbers.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        data_shape: Sequence[int],
        latent_dim: int | None = None,
        min_sigma: float = 0.01,
        max_sigma: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 < min_sigma <= max_sigma:
            raise ValueError(f"min_sigma and max_sigma must be positive and in order, got {min_sigma} and {max_sigma}")
        shape = [int(n) for n in data_shape]
        self.latent_dim = math.prod(shape) if latent_dim is None else latent_dim
        self.network = network(latent_dim=self.latent_dim, data_shape=shape)
        self.bounds = math.log(min_sigma), math.log(max_sigma)
        self.log_sigma = nn.Parameter(torch.tensor(self.bounds[0]))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Draw:
        """`n` samples, with all random numbers from `generator` (the global one if not given)."""
        device = self.log_sigma.device
        h = torch.randn(n, self.latent_dim, generator=generator, device=device)
        with _recorded_statistics(self.network) as statistics, torch.autocast(device.type, enabled=False):
            mean = self.network(h)
        noise = torch.randn(mean.shape, generator=generator, device=device)
        return Draw(mean + self.log_sigma.exp() * noise, h, statistics)

    def decode(self, h: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        """g(h), ``[B, *data_shape]``, as it was for the samples that `statistics` are of; h decides row by row."""
        with _evaluating(self.network), torch.autocast(h.device.type, enabled=False):
            return torch.func.functional_call(self.network, statistics, (h,))

    def log_joint(self, x: Tensor, h: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        r""":math:`\ln q(x, h)`, ``[B]``, up to what does not depend on h; :math:`\sigma` is taken as a constant."""
        residual = (x - self.decode(h, statistics)).flatten(1)
        return -(h.square().sum(1) + residual.square().sum(1) * (-2 * self.log_sigma.detach()).exp()) / 2

    @torch.no_grad()
    def clamp_sigma(self) -> None:
        r"""Put :math:`\sigma` back into its range, after a step of an optimiser."""
        self.log_sigma.clamp_(*self.bounds)


class ImportanceSampling(nn.Module):
    r"""Estimate of :math:`c(x) = -\nabla_x \ln q(x) = \mathbb E_{q(h' \mid x)} [(x - g(h')) / \sigma^2]`.

    With the samples' own c, :math:`\nabla_\phi H[q] = \mathbb E[c(x)^\top \partial x / \partial \phi]`. The expectation
    is taken with self-normalised weights over samples of a proposal around the h that made x,

    .. math:: h_s \sim \xi = \mathcal N(h, \operatorname{diag}(s^2)), \quad
        w = \mathrm{softmax}_s [\ln q(x, h_s) - \ln \xi(h_s)]

    The proposal's :math:`\ln s` is a parameter, trained by :meth:`proposal_loss`. A proposal that is narrower than the
    posterior biases the estimate.

    References:
        Grathwohl et al., arXiv:2010.04230, Section 3.1.

    Args:
        latent_dim: length of h.
        num_samples: samples :math:`h_s` of each x.
        init_scale: what s starts from.
        max_batch: how many samples go through g at once, at most; but all samples of one x do.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(self, latent_dim: int, num_samples: int = 20, init_scale: float = 0.1, max_batch: int = 4096) -> None:
        super().__init__()
        if not (num_samples > 0 and init_scale > 0):
            raise ValueError(f"num_samples and init_scale must be positive, got {num_samples} and {init_scale}")
        self.num_samples = num_samples
        self.max_batch = max_batch
        self.log_scale = nn.Parameter(torch.full((latent_dim,), math.log(init_scale)))

    @torch.no_grad()
    def forward(
        self, q: LatentGenerator, draw: Draw, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """c of samples of q, ``[B, *data_shape]`` without gradients.

        Returns:
            c, and the mean effective number of samples, ``ess``, in 1 to `num_samples`.
        """
        shape = (self.num_samples, *draw.h.shape)
        noise = torch.randn(shape, generator=generator, device=draw.h.device)
        rows = max(1, self.max_batch // self.num_samples)
        pieces = zip(draw.x.split(rows), draw.h.split(rows), noise.split(rows, dim=1), strict=True)
        c, ess = zip(*[self._piece(q, *piece, draw.statistics) for piece in pieces], strict=True)
        return torch.cat(c).view_as(draw.x), {"ess": torch.cat(ess).mean()}

    def _piece(
        self, q: LatentGenerator, x: Tensor, h: Tensor, noise: Tensor, statistics: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        samples = h + self.log_scale.exp() * noise
        mean = q.decode(samples.flatten(0, 1), statistics)
        residual = (x - mean.unflatten(0, samples.shape[:2])).flatten(2)
        precision = (-2 * q.log_sigma).exp()
        # In double precision: the terms are large, and their differences of order one are the weights' logarithms.
        log_joint = -(samples.double().square().sum(-1) + precision * residual.square().sum(-1, dtype=torch.double)) / 2
        weights = (log_joint + noise.double().square().sum(-1) / 2).softmax(0)
        c = precision * torch.einsum("sb,sbd->bd", weights.to(residual), residual)
        return c, 1 / weights.square().sum(0)

    def proposal_loss(self, q: LatentGenerator, draw: Draw, generator: torch.Generator | None = None) -> Tensor:
        r"""Divergence of the proposal from the posterior :math:`q(h \mid x)`, up to a constant, averaged over x.

        To be minimised over ``log_scale`` only; it also depends on the parameters of g.
        """
        noise = torch.randn(draw.h.shape, generator=generator, device=draw.h.device)
        h = draw.h + self.log_scale.exp() * noise
        return -q.log_joint(draw.x.detach(), h, draw.statistics).mean() - self.log_scale.sum()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own mode afterwards."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def _recorded_statistics(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What batch normalisations that are in training mode normalise with, filled in by the forward pass inside."""
    statistics: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            if norm.training:
                x = inputs[0].detach()
                variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
                statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"] = mean, variance

        return hook

    handles = [
        norm.register_forward_pre_hook(record(name))
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
