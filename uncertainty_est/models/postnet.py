"""Posterior Network: evidence is a class's count times its density at the input's latent code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est import measures
from uncertainty_est.densities.base import ClassDensities
from uncertainty_est.errors import NotFittedError
from uncertainty_est.losses.dirichlet import uncertain_cross_entropy
from uncertainty_est.models.base import Prediction
from uncertainty_est.models.dirichlet import DirichletNetwork
from uncertainty_est.networks.base import Network

_LEARNED = "parametrized"
_LOG_BUDGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "id": torch.log,
    "one": torch.zeros_like,
    "log": lambda n: n.log1p().log(),
    "id_normalized": lambda n: (n / n.sum()).log(),
    "exp": lambda n: n,
}


class PostNet(DirichletNetwork):
    r"""Dirichlet posterior with pseudo-counts from one density for each class over a small latent space.

    .. math:: \alpha_c(x) = 1 + \beta(N_c)\, p(z \mid c), \quad z = \mathrm{BN}(\text{network}(x))

    .. math:: L = \operatorname{mean} \psi(\alpha_0) - \psi(\alpha_y) - \lambda H[\mathrm{Dir}(\alpha)]

    :math:`N_c` counts training samples; :math:`\beta` is the budget function. Without batch normalisation the densities
    could grow without bound. Far from all data :math:`\alpha = 1` exactly: there the Dirichlet scores tie, by design,
    while ``max log p(z|y)`` still ranks.

    Scores: ``log alpha0`` (the paper's epistemic score, the headline), the other Dirichlet scores (``max p(y|x)`` is
    its aleatoric one), ``log max alpha`` (its epistemic score for misclassification) and ``max log p(z|y)``.

    References:
        Charpentier, Zügner and Günnemann, arXiv:2006.09239, Eq. 4 to 7.

    Args:
        network: encoder; its "logits" are the latent code ``[B, H]``.
        density: makes the class densities from ``num_classes`` and ``dim`` (a ``_partial_`` node).
        num_classes: C.
        entropy_weight: :math:`\lambda`.
        budget: :math:`\beta(N_c)`: ``id``: :math:`N_c`; ``one``: 1; ``log``: :math:`\ln(N_c + 1)`; ``id_normalized``:
            :math:`N_c / N`; ``exp``: :math:`e^{N_c}`; ``parametrized``: learned shares that sum to one.

    Raises:
        ValueError: an unknown budget, or a negative weight.
    """

    headline = "log alpha0"
    density: ClassDensities
    class_counts: Tensor

    def __init__(
        self,
        network: Network,
        density: Callable[..., ClassDensities],
        num_classes: int,
        entropy_weight: float = 1e-5,
        budget: str = "id",
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if budget not in (*_LOG_BUDGETS, _LEARNED):
            known = ", ".join(f"'{name}'" for name in (*_LOG_BUDGETS, _LEARNED))
            raise ValueError(f"budget must be one of {known}, got '{budget}'")
        if entropy_weight < 0:
            raise ValueError(f"entropy_weight must be at least 0, got {entropy_weight}")
        latent_dim = network.head.out_features
        self.batch_norm = nn.BatchNorm1d(latent_dim)
        self.density = density(num_classes=num_classes, dim=latent_dim)
        self.entropy_weight = entropy_weight
        self.budget = budget
        if budget == _LEARNED:
            self.budget_logits = nn.Parameter(torch.zeros(num_classes))
        # Float64: counts are only ever used there. Zero until training starts.
        self.register_buffer("class_counts", torch.zeros(num_classes, dtype=torch.float64))

    @property
    def classifier(self) -> None:
        """None: what the network puts out is a latent vector."""
        return None

    def setup(self, stage: str) -> None:
        """Take the class counts of the training split from the data module."""
        if stage == "fit":
            self.class_counts.copy_(self.trainer.datamodule.class_counts)  # type: ignore[attr-defined]

    def log_density(self, x: Tensor) -> Tensor:
        """Log-densities ``[B, C]`` float32 of the latent code of ``x: [B, *data_shape]`` under each class."""
        latent = self.network(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.density.log_prob(self.batch_norm(latent.float()))

    def log_budget(self) -> Tensor:
        """Logarithm of the classes' budgets, ``[C]`` float64; minus infinity for a class without samples."""
        if self.budget == _LEARNED:
            return self.budget_logits.double().log_softmax(0)
        return _LOG_BUDGETS[self.budget](self.class_counts.double())

    def concentrations(self, logits: Tensor) -> Tensor:
        """``alpha`` from log-densities ``[B, C]`` float64."""
        log_evidence = (self.log_budget() + logits).clamp(max=measures.LARGEST_LOG_ALPHA)
        return 1 + log_evidence.exp()

    def alpha(self, x: Tensor) -> Tensor:
        return self.concentrations(self.log_density(x).double())

    def loss_from(self, alpha: Tensor, y: Tensor, alpha_ood: Tensor | None) -> dict[str, Tensor]:
        cross_entropy, entropy = uncertain_cross_entropy(alpha, y)
        return {"uce": cross_entropy.mean(), "entropy": -self.entropy_weight * entropy.mean()}

    def _predict(self, x: Tensor) -> Prediction:
        if not self.class_counts.any():
            raise NotFittedError("PostNet does not know the class counts: train it or load a trained checkpoint")
        log_density = self.log_density(x)
        alpha = self.concentrations(log_density.double())
        prediction = self.predict_from(alpha)
        prediction.scores["log max alpha"] = alpha.amax(-1).log().float()
        prediction.scores["max log p(z|y)"] = log_density.amax(-1)
        return prediction
