"""Energy-Prior Network trained with Langevin chains (EPN-M)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.losses.dirichlet import expected_cross_entropy
from uncertainty_est.measures import dirichlet_entropy
from uncertainty_est.models.ebm.evidence import EvidentialEnergy
from uncertainty_est.models.ebm.mcmc import MCMC, Sampler
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.replay_buffer import ReplayBuffer

# Beyond, the terms of a Dirichlet's entropy are so large that no digit of their sum is left in float64.
_LARGEST_LOGIT_OF_ENTROPY = 30.0


class MCMCPriorNet(EvidentialEnergy, MCMC):
    r"""Evidence :math:`e^{F(x)}` trained as the density of :class:`MCMC`, classes with the uncertain cross-entropy.

    .. math:: L = w_x \bigl( \operatorname{mean} F(x^-) - \operatorname{mean} F(x)
        + c \,[\operatorname{mean} F(x)^2 + \operatorname{mean} F(x^-)^2] \bigr)
        + w_{y|x} \bigl( \operatorname{mean} [\psi(\alpha_0) - \psi(\alpha_y)]
        - r \operatorname{mean} H[\mathrm{Dir}(\alpha)] \bigr)

    Both parts of the class loss are means over the samples.

    Scores: ``p(x)`` (the headline), then those of :func:`uncertainty_est.measures.dirichlet_scores`.

    References:
        Elflein, arXiv:2302.12002. Uncertain cross-entropy: Charpentier et al., arXiv:2006.09239, Eq. 7.

    Args:
        network: its logits ``[B, C]`` are f, C at least 2.
        sampler: moves the chains.
        buffer: keeps the chains; in as many blocks as there are classes where chains have a class.
        pxsgld: :math:`w_x`.
        pyxce: :math:`w_{y|x}`.
        p_control: c, holds F near 0.
        entropy_reg: r, rewards flat Dirichlet distributions.
        class_cond_p_x_sample: every chain has a class; the classes are equally frequent.
        approximate_mass: add the score of this name, as :class:`MCMC` does.
        alpha_fix: concentrations :math:`\alpha = 1 + e^f`, without it :math:`e^f`.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a value outside its range, nothing to train, or a network with a single logit.
    """

    def __init__(
        self,
        network: Network,
        sampler: Sampler,
        buffer: ReplayBuffer,
        pxsgld: float = 1.0,
        pyxce: float = 1.0,
        p_control: float = 1.0,
        entropy_reg: float = 1e-4,
        class_cond_p_x_sample: bool = True,
        approximate_mass: bool = False,
        alpha_fix: bool = True,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            network,
            sampler,
            buffer,
            pxsgld=pxsgld,
            pyxce=pyxce,
            p_control=p_control,
            entropy_reg=entropy_reg,
            class_cond_p_x_sample=class_cond_p_x_sample,
            approximate_mass=approximate_mass,
            input_noise=input_noise,
            warmup_steps=warmup_steps,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        if not self.has_classes:
            raise ValueError("a Dirichlet distribution needs classes, but network.num_classes is 1")
        self.alpha_fix = alpha_fix

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        parts = {"uce": expected_cross_entropy(self.alpha(logits), y).mean()}
        if self.entropy_reg:
            alpha = self.alpha(logits.clamp(max=_LARGEST_LOGIT_OF_ENTROPY))
            parts["entropy"] = -self.entropy_reg * dirichlet_entropy(alpha).mean()
        return parts
