"""VERA: an energy-based model against a generator whose entropy is kept up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est import measures
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch, scoring_mode
from uncertainty_est.models.ebm.energy import EnergyModel
from uncertainty_est.models.ebm.players import Player
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.hmc import HMCSampling
from uncertainty_est.samplers.random import rank_generator
from uncertainty_est.samplers.vera import Draw, ImportanceSampling, LatentGenerator


class VERA(EnergyModel):
    r"""Energy-based model whose samples come from a generator q that is trained to follow it.

    The energy's player minimises, with :math:`F = \mathrm{lse} f` on data x and on samples :math:`\tilde x \sim q`,

    .. math:: w_x \operatorname{mean} \bigl[ F(\tilde x) - F(x) + p F(x)^2 + n F(\tilde x)^2
        + \tfrac g2 \lVert \nabla_x F(x) \rVert^2 + w_H H[p(\cdot \mid x)] \bigr]
        + w_{\text{clf}} \operatorname{mean} [\mathrm{lse} f(x) - f_y(x)]

    (the terms with classes for more than one logit only), and the generator maximises
    :math:`\operatorname{mean} F(\tilde x) + \lambda H[q]`. The gradient of :math:`H[q]` needs samples of
    :math:`q(h \mid x)`, which come from a learned proposal or from a Markov chain. Each player has an optimiser of its
    own, warmed up to its own rate; gradients of one never reach another. Random numbers come from a generator of each
    process, seeded with the global seed and the process's rank.

    References:
        Grathwohl et al., arXiv:2010.04230.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        generator: q.
        px_weight: :math:`w_x`.
        p_control: p.
        n_control: n.
        pg_control: g.
        clf_ent_weight: :math:`w_H`, makes classes certain on data.
        clf_weight: :math:`w_{\text{clf}}`.
        entropy_weight: :math:`\lambda`.
        entropy_estimator: ``"importance"`` or ``"hmc"``, where samples of :math:`q(h \mid x)` come from.
        posterior_samples: of the importance sampler, for each x.
        init_posterior_sigma: standard deviation that its proposal starts from.
        ebm_iters: the energy's player has its turn every so many batches.
        generator_iters: the generator's has; one of the two must be 1.
        gradient_clip_val: largest norm of a player's gradient; Lightning's own option is for one optimiser only.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: batches in which each learning rate rises linearly to its own value.
        decay_from: part of the training, 0 to 1, after which each learning rate falls along half a cosine to a
            hundredth at the last batch; ``None``: it does not. Players whose rates stay high go round each other.
        optimizer: of the network.
        generator_optimizer: of the generator.
        posterior_optimizer: of the importance sampler's proposal, which stays as it is if not given.
        scheduler: called with the network's and with the generator's optimizer; stepped once an epoch.

    Raises:
        ValueError: a negative weight, an unknown estimator, turns that leave batches without a player, or a
            `decay_from` that is no part.
    """

    can_sample = True
    progress = ("_iteration",)

    def __init__(
        self,
        network: Network,
        generator: LatentGenerator,
        px_weight: float = 1.0,
        p_control: float = 0.0,
        n_control: float = 0.0,
        pg_control: float = 0.1,
        clf_ent_weight: float = 0.0,
        clf_weight: float = 1.0,
        entropy_weight: float = 1e-4,
        entropy_estimator: str = "importance",
        posterior_samples: int = 20,
        init_posterior_sigma: float = 0.1,
        ebm_iters: int = 1,
        generator_iters: int = 1,
        gradient_clip_val: float | None = None,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        decay_from: float | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        generator_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        posterior_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, input_noise, warmup_steps, optimizer, scheduler)
        self.automatic_optimization = False
        weights = (px_weight, p_control, n_control, pg_control, clf_ent_weight, clf_weight, entropy_weight)
        if min(weights) < 0:
            raise ValueError(
                "px_weight, p_control, n_control, pg_control, clf_ent_weight, clf_weight and entropy_weight must be"
                f" at least 0, got {', '.join(map(str, weights))}"
            )
        if min(ebm_iters, generator_iters) != 1:
            raise ValueError(f"one of ebm_iters and generator_iters must be 1, got {ebm_iters} and {generator_iters}")
        if decay_from is not None and not 0 <= decay_from < 1:
            raise ValueError(f"decay_from must be at least 0 and below 1, got {decay_from}")
        self.generator = generator
        self.sampler: ImportanceSampling | HMCSampling
        if entropy_estimator == "importance":
            self.sampler = ImportanceSampling(generator.latent_dim, posterior_samples, init_posterior_sigma)
        elif entropy_estimator == "hmc":
            self.sampler = HMCSampling(generator.latent_dim)
        else:
            raise ValueError(f"entropy_estimator must be 'importance' or 'hmc', got '{entropy_estimator}'")
        self.px_weight = px_weight
        self.p_control = p_control
        self.n_control = n_control
        self.pg_control = pg_control
        self.clf_ent_weight = clf_ent_weight
        self.clf_weight = clf_weight
        self.entropy_weight = entropy_weight
        self.ebm_iters = ebm_iters
        self.generator_iters = generator_iters
        self.gradient_clip_val = gradient_clip_val
        self.decay_from = decay_from
        self._make_generator_optimizer = generator_optimizer
        self._make_posterior_optimizer = posterior_optimizer
        self._players: dict[str, Player] = {}
        self._random: torch.Generator | None = None
        self._iteration = 0

    # --------------------------------------------------------------------------------------- what is minimised

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The energy's loss, against new samples of the generator."""
        x, y = batch["id"]
        return self.energy_loss(x, y, self.generator.draw(len(x), self._random).x)

    def energy_loss(self, x: Tensor, y: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Parts of the loss of the energy's player, for data ``x: [B, *data_shape]`` and samples of the same shape."""
        x = self.noisy(x).detach().requires_grad_(self.pg_control > 0)
        logits, logits_of_samples = self.logits(x), self.logits(samples.detach())
        known, unknown = logits.logsumexp(-1), logits_of_samples.logsumexp(-1)
        self.note({"F/data": known.mean(), "F/samples": unknown.mean()})
        parts = {"density": unknown.mean() - known.mean()}
        if self.p_control or self.n_control:
            parts["control"] = self.p_control * known.square().mean() + self.n_control * unknown.square().mean()
        if self.pg_control:
            (gradient,) = torch.autograd.grad(known.sum(), x, create_graph=True)
            penalty = gradient.flatten(1).square().sum(1).mean() / 2
            self.note({"gradient_penalty": penalty})
            parts["penalty"] = self.pg_control * penalty
        if self.clf_ent_weight and self.has_classes:
            parts["class_entropy"] = self.clf_ent_weight * measures.entropy(logits.softmax(-1)).float().mean()
        parts = {name: self.px_weight * part for name, part in parts.items()}
        if self.has_classes:
            parts |= {name: self.clf_weight * part for name, part in self.class_loss(logits, y).items()}
        return parts | self.sample_loss(logits_of_samples)

    def sample_loss(self, logits: Tensor) -> dict[str, Tensor]:
        """Further parts of the energy's loss, on ``logits: [B, C]`` of samples, which have no labels; none here."""
        return {}

    def generator_loss(self, draw: Draw) -> Tensor:
        r"""Scalar with the gradient of :math:`-\operatorname{mean} F(\tilde x) - \lambda H[q]` in the generator alone.

        The gradient in the samples, :math:`\nabla F + \lambda c`, is taken first and held: the network's parameters
        are no part of this graph.
        """
        samples = draw.x.detach().requires_grad_()
        density = self.log_density(samples)
        (ascent,) = torch.autograd.grad(density.sum(), samples)
        notes = {"F/gradient_at_samples": ascent.flatten(1).norm(dim=1).mean()}
        if self.entropy_weight:
            c, of_sampler = self.sampler(self.generator, draw, self._random)
            ascent = ascent + self.entropy_weight * c
            notes |= {f"generator/{name}": value for name, value in of_sampler.items()}
            notes["generator/entropy_surrogate"] = (c * draw.x.detach()).flatten(1).sum(1).mean()
        self.note(notes | {"generator/sigma": self.generator.log_sigma.exp()})
        return -(ascent * draw.x).flatten(1).sum(1).mean()

    # ------------------------------------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        self._random = rank_generator(self.device, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Every player's turn with one batch and one draw of samples; returns the energy's loss, detached."""
        # Differences of log-densities, and their derivatives even more, have no digits in half precision.
        with torch.autocast(self.device.type, enabled=False):
            total = self._turns(*batch["id"])
        for scheduler in chain.from_iterable(player.by_batch for player in self._players.values()):
            scheduler.step()
        self._iteration += 1
        self.log_notes(batch, batch_idx)
        return total

    def _turns(self, x: Tensor, y: Tensor) -> Tensor:
        draw = self.generator.draw(len(x), self._random)
        energys_turn = self._iteration % self.ebm_iters == 0
        if energys_turn:
            parts = self.energy_loss(x.float(), y, draw.x)
            loss = torch.stack(list(parts.values())).sum()
            self._players["network"].minimise(self, loss, self.gradient_clip_val)
            self.note(parts | {"loss": loss})
        if self._iteration % self.generator_iters == 0:
            generators = self.generator_loss(draw)
            if "posterior" in self._players:
                assert isinstance(self.sampler, ImportanceSampling)
                proposals = self.sampler.proposal_loss(self.generator, draw, self._random)
                self._players["posterior"].minimise(self, proposals, self.gradient_clip_val, counts=False)
            self._players["generator"].minimise(self, generators, self.gradient_clip_val, counts=not energys_turn)
            self.generator.clamp_sigma()
        return loss.detach() if energys_turn else generators.detach()

    def on_train_epoch_end(self) -> None:
        for player in self._players.values():
            if player.decay is not None:
                player.decay.step()

    def configure_optimizers(self) -> Any:
        self._players = {
            "network": self._player("optimizer", self.network, self._make_optimizer, self._make_scheduler),
            "generator": self._player(
                "generator_optimizer", self.generator, self._make_generator_optimizer, self._make_scheduler
            ),
        }
        learns = self._make_posterior_optimizer is not None and isinstance(self.sampler, ImportanceSampling)
        if learns and self.entropy_weight:
            self._players["posterior"] = self._player(
                "posterior_optimizer", self.sampler, self._make_posterior_optimizer
            )
        players = self._players.values()
        return [p.optimizer for p in players], [scheduler for p in players for scheduler in p.schedulers]

    def _player(
        self,
        key: str,
        module: nn.Module,
        make_optimizer: Callable[..., torch.optim.Optimizer] | None,
        make_decay: Callable[..., Any] | None = None,
    ) -> Player:
        if make_optimizer is None:
            raise ConfigError(f"fixed.model_config.{key}: training needs an optimizer")
        falls = None
        if self.decay_from is not None:
            last = self.last_step()
            falls = int(self.decay_from * last), last
        return Player.make(module.parameters(), make_optimizer, self.warmup_steps, make_decay, falls)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        with scoring_mode(self):
            return self.generator.draw(n, generator).x
