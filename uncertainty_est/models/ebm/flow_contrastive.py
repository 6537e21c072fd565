"""Energy-based model trained against a normalising flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.coupling import CouplingFlows
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.models.ebm.players import Player
from uncertainty_est.networks.base import Network


class FlowContrastive(ObjectiveModel):
    r"""Density F learned by telling data from samples of a flow q, which in turn learns not to be told from data.

    .. math:: V = \rho \operatorname{mean}_{\text{data}} \mathrm{softplus}(-G)
        + (1 - \rho) \operatorname{mean}_q \mathrm{softplus}(G), \quad
        G = F - \ln q + \ln \tfrac{\rho}{1 - \rho}

    F minimises V (plus the class loss), q maximises it, through its samples and its density. At the optimum
    :math:`F = \ln p = \ln q`, normalised, and V is the entropy of :math:`(\rho, 1 - \rho)`. A step is one of F as long
    as F tells data from samples or samples from data (:math:`F > \ln q` and reverse) with an accuracy below
    `threshold`, else one of q. Draws samples, from q.

    References:
        Gao et al., arXiv:1912.00589, Eq. 8 and Algorithm 1.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        flow: makes q from ``num_classes`` (1) and ``dim`` (a ``_partial_`` node of
            :class:`~uncertainty_est.densities.coupling.CouplingFlows`).
        data_shape: shape of one input.
        prior: :math:`\rho`, the share of data.
        threshold: accuracy below which F is trained.
        gradient_clip_val: largest norm of a gradient, of F's and of q's parameters each; the trainer's own is for
            methods with one optimizer only.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps of each optimizer in which its learning rate rises linearly to its own value.
        optimizer: of F.
        flow_optimizer: of q.
        scheduler: called with either optimizer; stepped once an epoch.

    Raises:
        ValueError: a share or accuracy outside (0, 1), a norm that is not positive, a negative number, or a flow that
            cannot be sampled.
    """

    can_sample = True
    progress = ("_turns",)

    def __init__(
        self,
        network: Network,
        flow: Callable[..., CouplingFlows],
        data_shape: Sequence[int],
        prior: float = 0.5,
        threshold: float = 0.55,
        gradient_clip_val: float | None = None,
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        flow_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, clf_weight, input_noise, warmup_steps, optimizer, scheduler)
        if not (0 < prior < 1 and 0 < threshold < 1):
            raise ValueError(f"prior and threshold must lie between 0 and 1, got {prior} and {threshold}")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be positive, got {gradient_clip_val}")
        self.data_shape = tuple(int(n) for n in data_shape)
        self.flow = flow(num_classes=1, dim=math.prod(self.data_shape))
        if not isinstance(self.flow, CouplingFlows):
            kind = type(self.flow).__name__
            raise ValueError(f"flow must make CouplingFlows, whose samples have gradients, got {kind}")
        self.prior = prior
        self.threshold = threshold
        self.gradient_clip_val = gradient_clip_val
        self.automatic_optimization = False
        self._accuracy = torch.zeros(())
        self._make_flow_optimizer = flow_optimizer
        self._players: list[Player] = []  # F's and q's
        self._turns = [0, 0]  # that each of them has had

    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        noise = self.randn((len(x), self.flow.dim)).to(x)
        # The flow's samples keep their gradients: q learns through them as well.
        inputs = torch.cat([x, self.flow.from_noise(noise).view_as(x)])
        logits = self.logits(inputs)
        log_density, log_q = logits.logsumexp(-1), self.flow.log_prob(inputs.flatten(1)).squeeze(-1)
        log_ratio = log_density - log_q
        data, drawn = (log_ratio + math.log(self.prior / (1 - self.prior))).split(len(x))
        correct = torch.stack([(log_ratio[: len(x)] > 0).float().mean(), (log_ratio[len(x) :] < 0).float().mean()])
        self._accuracy = correct
        self.note(
            {
                "F/samples": log_density[len(x) :].mean(),
                "log_q/data": log_q[: len(x)].mean(),
                "accuracy/data": correct[0],
                "accuracy/samples": correct[1],
            }
        )
        parts = {
            "data": self.prior * F.softplus(-data).mean(),
            "samples": (1 - self.prior) * F.softplus(drawn).mean(),
        }
        return parts, logits[: len(x)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of F or of q, whose turn it is; logs the sum of :meth:`loss` and its parts."""
        total = self.noted_loss(batch)
        accuracy = self.trainer.strategy.reduce(self._accuracy, reduce_op="mean")
        # The one number that the host waits for; the same on all ranks, which must step the same network.
        turn = int(bool(accuracy.amin() >= self.threshold))
        player = self._players[turn]
        player.minimise(self, -total if turn else total, self.gradient_clip_val)
        for scheduler in player.by_batch:
            scheduler.step()
        self._turns[turn] += 1
        self.note({"flow_turn": torch.tensor(float(turn))})
        self.log_notes(batch, batch_idx)
        return total.detach()

    def on_train_epoch_end(self) -> None:
        for turns, player in zip(self._turns, self._players, strict=True):
            if player.decay is not None and turns:  # a rate that nothing was stepped with yet does not fall
                player.decay.step()

    def configure_optimizers(self) -> Any:
        """Optimizers of F and of q, and their schedulers if any.

        Raises:
            ConfigError: an optimizer was not configured.
        """
        self._players = [
            self._player("optimizer", self.network, self._make_optimizer),
            self._player("flow_optimizer", self.flow, self._make_flow_optimizer),
        ]
        return [p.optimizer for p in self._players], [s for p in self._players for s in p.schedulers]

    def _player(self, key: str, module: nn.Module, make: Callable[..., torch.optim.Optimizer] | None) -> Player:
        if make is None:
            raise ConfigError(f"fixed.model_config.{key}: training needs an optimizer")
        return Player.make(module.parameters(), make, self.warmup_steps, self._make_scheduler)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.flow.sample(n, generator).view(n, *self.data_shape)
