"""A classifier that is uncertain on samples of a generator, which learns to make them at the border of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.errors import ConfigError
from uncertainty_est.losses.outlier import uniform_cross_entropy
from uncertainty_est.models.base import Batch, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.ebm.players import Player
from uncertainty_est.models.raw_units import RawUnits
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.random import rank_generator


class ConfidentGAN(CEBaseline):
    r"""Classifier p, generator G and discriminator :math:`D = \mathrm{sigmoid}(d)`, trained against each other.

    With :math:`K(z) = \mathrm{KL}(U \Vert p(\cdot \mid G(z)))`, the divergence of the prediction from the uniform one,

    .. math:: L_p = \operatorname{mean} [-\ln p(y \mid x)] + \beta \operatorname{mean} K, \quad
        L_D = -\operatorname{mean} \ln D(x) - \operatorname{mean} \ln (1 - D(G(z))), \quad
        L_G = -\operatorname{mean} \ln D(G(z)) + \beta \operatorname{mean} K

    so that samples look like data to D and like nothing to p. :math:`L_G` has the GAN loss that does not saturate.
    All three players step in every batch, from one draw of samples and one pass through p and D each. Random numbers
    come from a generator of each process, seeded with the global seed and the process's rank. The validation loss is
    the cross-entropy of data alone: what samples add depends on G.

    Scores are the softmax baseline's, ``max p(y|x)`` first.

    References:
        Lee et al., arXiv:1711.09325, Eq. 4 and Algorithm 1. Without saturation: Goodfellow et al., arXiv:1406.2661.

    Args:
        network: p, logits and features of ``[B, *data_shape]``.
        generator: G, ``[B, generator.latent_dim] -> [B, *data_shape]`` in raw units, see `mean` and `std`.
        discriminator: d, a network with one logit.
        beta: :math:`\beta`.
        mean: of the transform, for each channel or one: network inputs are ``(G(z) - mean) / std``. 0 for tables.
        std: likewise; 1 for tables.
        optimizer: of p.
        generator_optimizer: of G.
        discriminator_optimizer: of D.
        scheduler: called with each optimizer; stepped once an epoch.

    Raises:
        ValueError: a negative beta, or a discriminator with several logits.
    """

    can_sample = True

    def __init__(
        self,
        network: Network,
        generator: nn.Module,
        discriminator: Network,
        beta: float = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        generator_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        discriminator_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        if discriminator.head.out_features != 1:
            raise ValueError(f"discriminator must have num_classes 1, got {discriminator.head.out_features}")
        self.automatic_optimization = False
        self.generator = generator
        self.discriminator = discriminator
        self.beta = beta
        self.units = RawUnits(mean, std)
        self._makers = {
            "network": ("optimizer", optimizer),
            "discriminator": ("discriminator_optimizer", discriminator_optimizer),
            "generator": ("generator_optimizer", generator_optimizer),
        }
        self._players: dict[str, Player] = {}
        self._random: torch.Generator | None = None

    def draw(self, n: int, random: torch.Generator | None = None) -> Tensor:
        """Samples ``[n, *data_shape]`` in the network's input space, from `random` (the global one if not given)."""
        z = torch.randn(n, self.generator.latent_dim, generator=random, device=self.device)  # type: ignore[call-overload]
        return self.units.to_network(self.generator(z).float())

    def players_losses(self, x: Tensor, y: Tensor, samples: Tensor) -> dict[str, dict[str, Tensor]]:
        """Parts of the losses of ``network``, ``discriminator`` and ``generator``.

        The generator's is not :math:`L_G` but has its gradient: the one of the samples is taken first and held, so that
        its graph has no parameter of the other two.

        Args:
            x: data, ``[B, *data_shape]``.
            y: labels, ``[B]``.
            samples: :math:`G(z)`, ``[B', *data_shape]``, with gradients.
        """
        n = len(x)
        fake = samples.detach().requires_grad_()
        both = torch.cat([x, fake])
        logits = self.network(both).float()
        of_data, of_samples = self.discriminator(both).float().squeeze(-1).tensor_split([n])
        divergence = uniform_cross_entropy(logits[n:]).mean() - math.log(logits.shape[1])
        wanted = F.softplus(-of_samples).mean() + self.beta * divergence
        (gradient,) = torch.autograd.grad(wanted, fake, retain_graph=True)
        self.note(
            {
                "generator/loss": wanted,
                "D/data": of_data.sigmoid().mean(),
                "D/samples": of_samples.sigmoid().mean(),
                "confidence/samples": logits[n:].softmax(-1).amax(-1).mean(),
            }
        )
        return {
            "network": {"ce": F.cross_entropy(logits[:n], y), "divergence": self.beta * divergence},
            "discriminator": {"data": F.softplus(-of_data).mean(), "samples": F.softplus(of_samples).mean()},
            "generator": {"surrogate": (gradient * samples).sum()},
        }

    def on_fit_start(self) -> None:
        self._random = rank_generator(self.device, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A step of each player; returns the classifier's loss, detached, and logs it with its parts."""
        x, y = batch["id"]
        losses = self.players_losses(x, y, self.draw(len(x), self._random))
        for name, parts in losses.items():
            self._players[name].minimise(self, torch.stack(list(parts.values())).sum(), counts=name == "network")
        parts = losses["network"]
        total = torch.stack(list(parts.values())).sum().detach()
        self.note(parts | {"loss": total})
        self.log_notes(batch, batch_idx)
        return total

    def on_train_epoch_end(self) -> None:
        for player in self._players.values():
            for scheduler in player.schedulers:
                scheduler.step()

    def configure_optimizers(self) -> Any:
        """The optimizers of all three, and their schedulers if any.

        Raises:
            ConfigError: an optimizer was not configured.
        """
        for name, (key, make) in self._makers.items():
            if make is None:
                raise ConfigError(f"fixed.model_config.{key}: training needs an optimizer")
            parameters = self.get_submodule(name).parameters()
            self._players[name] = Player.make(parameters, make, 0, self._make_scheduler)
        players = self._players.values()
        return [p.optimizer for p in players], [s for p in players for s in p.schedulers]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        with scoring_mode(self):
            return self.draw(n, generator)
