"""Mixtures of spherical Gaussians, fitted by expectation maximisation and trainable afterwards."""

from __future__ import annotations

import logging
import math
import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.errors import ConfigError

log = logging.getLogger(__name__)

WEIGHTS = ("uniform", "learned")
VARIANCES = ("pooled", "each")
_ROWS = 8192  # of data in double precision at a time
_KMEANS_ROWS = 10_000  # at least so many, where there are so many, and less than twice as many
_KMEANS_STEPS = 20
_EM_STEPS = 15
_EM_TOLERANCE = 1e-4  # nats per dimension: a smaller gain ends the fit


class SphericalMixture(Fitted):
    r"""K Gaussians with one variance each, in log space and float64 throughout.

    .. math:: \ln p(z) = \operatorname{lse}_k \Bigl[ a_k - \tfrac D2 (\ln 2\pi + v_k)
        - \frac{\lVert z - \mu_k \rVert^2}{2 e^{v_k}} \Bigr]

    Means :math:`\mu` and log-variances v are parameters; the log-weights a are fitted, and no gradient changes them.

    References:
        Meinke and Hein, arXiv:1909.12180, section 3 and appendix (initialisation). Dempster, Laird and Rubin, 1977,
        Maximum likelihood from incomplete data via the EM algorithm.

    Args:
        num_components: K.
        dim: D.
        weights: ``"uniform"``, 1/K each, or ``"learned"`` by :meth:`fit`.
        variances: what :meth:`fit` ends with: ``"pooled"`` gives all components the mean of their variances, as the
            paper's code does, ``"each"`` leaves them.

    Raises:
        ValueError: a number below 1, or another option.
    """

    log_weight: Tensor

    def __init__(self, num_components: int, dim: int, weights: str = "uniform", variances: str = "pooled") -> None:
        super().__init__()
        check_positive(num_components=num_components, dim=dim)
        for key, value, options in (("weights", weights, WEIGHTS), ("variances", variances, VARIANCES)):
            if value not in options:
                raise ValueError(f"{key} must be one of {', '.join(options)}, got '{value}'")
        self.num_components = num_components
        self.dim = dim
        self.weights = weights
        self.variances = variances
        self.mean = nn.Parameter(torch.zeros(num_components, dim, dtype=torch.float64))
        self.log_var = nn.Parameter(torch.zeros(num_components, dtype=torch.float64))
        self.register_buffer(
            "log_weight", torch.full((num_components,), -math.log(num_components), dtype=torch.float64)
        )

    # ------------------------------------------------------------------------------------------------ density

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``[B]`` in nats of ``z: [B, D]``, float64.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self.joint(self.squared_distances(z)).logsumexp(-1)

    def joint(self, squared: Tensor) -> Tensor:
        """Log of weight times density of each component, ``[..., K]``, at squared distances ``[..., K]`` from its mean.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self.require_fit()
        constant = self.log_weight - 0.5 * self.dim * (self.log_var + math.log(2 * math.pi))
        return constant - squared * (0.5 * (-self.log_var).exp())

    def squared_distances(self, z: Tensor) -> Tensor:
        """``[B, K]`` float64, of ``z: [B, D]`` from the means: one product of matrices, no ``[B, K, D]``."""
        z = z.double()
        squares = z.square().sum(-1, keepdim=True) + self.mean.square().sum(-1)
        # What rounds below zero is zero to all digits that there are.
        return torch.addmm(squares, z, self.mean.T, alpha=-2).clamp(min=0)

    # ---------------------------------------------------------------------------------------------------- fit

    @torch.no_grad()
    def fit(self, z: Tensor, seed: int = 0) -> None:
        """k-means of less than 20,000 items, then at most 15 steps of expectation maximisation over all of them.

        Draws from no generator but its own: the same data and seed give the same mixture.

        Args:
            z: ``[N, D]`` of any floating type, N at least K.
            seed: of the k-means initialisation.

        Raises:
            ConfigError: fewer items than components.
            ValueError: another shape, or values that are not finite.
        """
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z must be [N, {self.dim}], got {list(z.shape)}")
        if not bool(z.isfinite().all()):
            raise ValueError("z must be finite, got NaN or infinity")
        if len(z) < self.num_components:
            raise ConfigError(
                f"fixed.model_config.num_components: {self.num_components} components cannot be fitted to {len(z)}"
                f" items; choose at most as many components as there are items"
            )
        least_variance = self.initialise(z, seed)
        gain, likelihood, steps = math.inf, -math.inf, 0
        while gain > _EM_TOLERANCE * self.dim and steps < _EM_STEPS:
            before, likelihood, steps = likelihood, self.em_step(z, least_variance), steps + 1
            gain = likelihood - before
        if self.variances == "pooled":
            self.log_var.fill_(float(self.log_var.logsumexp(0)) - math.log(self.num_components))
        log.info("mixture of %d: %.2f nats an item after %d steps", self.num_components, likelihood, steps)

    @torch.no_grad()
    def initialise(self, z: Tensor, seed: int = 0) -> Tensor:
        """Means of k-means clusters of ``z: [N, D]``, all with the mean squared distance from them as variance.

        Returns:
            Scalar that no variance should fall below: the data's own, divided by N.
        """
        # Evenly spread over the data, whatever their order.
        some = z[:: max(1, len(z) // max(_KMEANS_ROWS, self.num_components))]
        kmeans = KMeans(self.num_components, n_init=1, max_iter=_KMEANS_STEPS, random_state=seed)
        with warnings.catch_warnings():
            # Data of fewer distinct points than components: some components coincide, and that is their maximum.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans.fit(some.float().cpu().numpy())
        least_variance = (z.var(0, correction=0).double().mean() / len(z)).clamp(min=torch.finfo(torch.float32).tiny)
        variance = max(kmeans.inertia_ / (len(some) * self.dim), float(least_variance))
        self.mean.copy_(torch.from_numpy(kmeans.cluster_centers_))
        self.log_var.fill_(math.log(variance))
        self.log_weight.fill_(-math.log(self.num_components))
        self.fitted.fill_(True)
        return least_variance

    @torch.no_grad()
    def em_step(self, z: Tensor, least_variance: Tensor) -> float:
        r"""One step of expectation maximisation; the mean log-likelihood of ``z: [N, D]`` before it, which never falls.

        With responsibilities r, :math:`n_k = \sum_i r_{ik}`:
        :math:`\mu_k = \sum_i r_{ik} z_i / n_k`, :math:`\sigma_k^2 = (\sum_i r_{ik} \lVert z_i \rVert^2 / n_k -
        \lVert \mu_k \rVert^2) / D`, not below `least_variance`, and weights :math:`n_k / N` if they are learned. A
        component that no item is left for stays where it is.
        """
        count, squares = torch.zeros_like(self.log_var), torch.zeros_like(self.log_var)
        total, likelihood = torch.zeros_like(self.mean), self.log_var.new_zeros(())
        for part in z.split(_ROWS):
            part = part.double()
            joint = self.joint(self.squared_distances(part))
            log_prob = joint.logsumexp(-1, keepdim=True)
            responsibility = (joint - log_prob).exp_()
            likelihood += log_prob.sum()
            count += responsibility.sum(0)
            squares += responsibility.T @ part.square().sum(-1)
            total.addmm_(responsibility.T, part)
        alive = count > torch.finfo(count.dtype).tiny
        n = count.where(alive, 1.0)
        mean = total / n.unsqueeze(-1)
        variance = ((squares / n - mean.square().sum(-1)) / self.dim).clamp(min=least_variance)
        self.mean.copy_(torch.where(alive.unsqueeze(-1), mean, self.mean))
        self.log_var.copy_(torch.where(alive, variance.log(), self.log_var))
        if self.weights == "learned":
            self.log_weight.copy_((n.where(alive, torch.finfo(n.dtype).tiny) / len(z)).log())
        return float(likelihood) / len(z)
