"""Variational autoencoder: the bound that it puts on an input's density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn

from uncertainty_est.models.base import Batch, Prediction, scoring_mode
from uncertainty_est.models.encoder_decoder import EncoderDecoder, distance
from uncertainty_est.networks.base import Network

# Posterior standard deviations lie within a factor e^7 = 1100 of the prior's, so that no exponential overflows.
_LARGEST_LOG_SIGMA = 7.0


class VAE(EncoderDecoder):
    r"""Latent-variable model :math:`p(x) = \int N(x; d(z), \tfrac\beta2 I)\, N(z; 0, I)\, dz` of inputs of D numbers.

    The encoder gives :math:`q(z|x) = N(\mu, \mathrm{diag}\, \sigma^2)`, and training minimises the mean of

    .. math:: \tfrac1D \lVert x - d(z) \rVert_2^2 + \tfrac\beta D \mathrm{KL}, \quad z = \mu + \sigma\varepsilon, \quad
        \mathrm{KL} = -\tfrac12 \sum_i (1 + \ln \sigma_i^2 - \mu_i^2 - \sigma_i^2),

    the parts ``rec`` and ``kl`` of the loss. It is :math:`-\tfrac\beta D \mathrm{ELBO}` up to a constant, whatever
    :math:`\beta` is: :math:`\beta` says how far from :math:`d(z)` the model expects inputs to be.

    Scores, each without randomness:

    - ``ELBO``, the headline, in nats: :math:`E_q \ln N(x; d(z), \tfrac\beta2 I) - \mathrm{KL} =
      -\tfrac1\beta E_q \lVert x - d(z) \rVert_2^2 - \tfrac D2 \ln(\pi\beta) - \mathrm{KL} \le \ln p(x)`, of the density
      of the network's input. The mean :math:`E_q` is taken over :func:`posterior_points`.
    - ``Reconstruction``: :math:`-\lVert x - d(\mu) \rVert_2`.
    - ``Latent norm``: :math:`-\lVert \mu \rVert_2`, the distance from the prior's centre.

    There are no class probabilities.

    References:
        Kingma and Welling, arXiv:1312.6114, Eq. 10. :math:`\beta`: Higgins et al., ICLR 2017.

    Args:
        data_shape: shape of one input, D numbers.
        network: builds the encoder; called with ``num_classes``, the number of its outputs.
        decoder: builds the decoder; called with ``latent_dim`` and ``data_shape``.
        latent_dim: length of the latent vector; :math:`\lfloor \sqrt D \rfloor` if not given.
        beta: twice the variance of the likelihood. With 1, the divergence and the sum of squares weigh the same.
        num_points: points of :math:`E_q`, see :func:`posterior_points`; as many passes through the decoder.

    Raises:
        ValueError: `latent_dim` below 1, `beta` not positive, or `num_points` no power of two.
    """

    outputs_per_latent = 2
    can_sample = True
    points: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        network: Callable[..., Network],
        decoder: Callable[..., nn.Module],
        latent_dim: int | None = None,
        beta: float = 1.0,
        num_points: int = 8,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(data_shape, network, decoder, latent_dim, optimizer, scheduler)
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}")
        self.beta = beta
        self.register_buffer("points", posterior_points(self.latent_dim, num_points), persistent=False)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\mu` and :math:`\ln\sigma`, each ``[B, latent_dim]``, of ``x: [B, *data_shape]``."""
        mu, log_sigma = self.network(x).float().chunk(2, dim=1)
        return mu, log_sigma.clamp(-_LARGEST_LOG_SIGMA, _LARGEST_LOG_SIGMA)

    def elbo(self, x: Tensor) -> Tensor:
        """Evidence lower bound ``[B]`` in nats of ``x: [B, *data_shape]``, without randomness."""
        return self._elbo(x, *self.posterior(x))

    def _predict(self, x: Tensor) -> Prediction:
        mu, log_sigma = self.posterior(x)
        scores = {
            "ELBO": self._elbo(x, mu, log_sigma),
            "Reconstruction": -distance(x, self.decode(mu)),
            "Latent norm": -torch.linalg.vector_norm(mu, dim=1),
        }
        return Prediction(None, scores)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, _ = batch["id"]
        mu, log_sigma = self.posterior(x)
        z = mu + log_sigma.exp() * torch.randn_like(mu)
        return self._parts(self._squared_error(x, z), kl_to_standard_normal(mu, log_sigma))

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], None]:
        # Without draws, so that epochs are compared on equal terms.
        x, _ = batch["id"]
        mu, log_sigma = self.posterior(x)
        return self._parts(self._mean_error(x, mu, log_sigma), kl_to_standard_normal(mu, log_sigma)), None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Decoded draws from the prior, ``[n, *data_shape]``, without the likelihood's noise.

        Args:
            n: how many.
            generator: on the method's device; draws come from it alone.
        """
        with scoring_mode(self):
            return self.decode(torch.randn(n, self.latent_dim, generator=generator, device=self.device))

    def _elbo(self, x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
        constant = self.data_dim / 2 * math.log(math.pi * self.beta)
        error = self._mean_error(x, mu, log_sigma)
        return -error / self.beta - constant - kl_to_standard_normal(mu, log_sigma)

    def _squared_error(self, x: Tensor, z: Tensor) -> Tensor:
        return (x - self.decode(z)).square().flatten(1).sum(1)

    def _mean_error(self, x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
        sigma = log_sigma.exp()
        # One point at a time: all of them at once would need their number times the memory.
        return torch.stack([self._squared_error(x, mu + sigma * point) for point in self.points]).mean(0)

    def _parts(self, squared_error: Tensor, kl: Tensor) -> dict[str, Tensor]:
        return {"rec": squared_error.mean() / self.data_dim, "kl": self.beta / self.data_dim * kl.mean()}


def kl_to_standard_normal(mu: Tensor, log_sigma: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(N(\mu, \mathrm{diag}\, \sigma^2) \| N(0, I))` in nats, ``[B]``.

    Args:
        mu: means ``[B, d]``.
        log_sigma: logarithms of the standard deviations, ``[B, d]``.
    """
    return (mu.square() + (2 * log_sigma).expm1() - 2 * log_sigma).sum(-1) / 2


def posterior_points(dim: int, num_points: int) -> Tensor:
    r"""Points ``[num_points, dim]`` that stand for :math:`\varepsilon \sim N(0, I)` where a mean over it is wanted.

    They are rows of a Hadamard matrix without its first column: every coordinate is 1 or -1, each half of the time,
    and the means over the points of :math:`\varepsilon_i` and :math:`\varepsilon_i^2` are 0 and 1. With more points
    than dimensions that of :math:`\varepsilon_i \varepsilon_j` is 0 as well, so that means of quadratic functions are
    exact, and with them the bound of a model whose decoder is affine. With fewer, dimensions that are a multiple of
    ``num_points - 1`` apart share their signs.

    Args:
        dim: latent dimensions.
        num_points: a power of two, at least 2.

    Raises:
        ValueError: another number of points.
    """
    if num_points < 2 or num_points & (num_points - 1):
        raise ValueError(f"num_points must be a power of two, at least 2, got {num_points}")
    columns = 1 + torch.arange(dim) % (num_points - 1)
    return torch.from_numpy(scipy.linalg.hadamard(num_points)).float()[:, columns]
