"""What energy-based models share whose training objective is a function of a batch, so that it validates as well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.base import Batch
from uncertainty_est.models.ebm.energy import EnergyModel
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.random import rank_generator


class ObjectiveModel(EnergyModel):
    r"""Base of energy-based models that train without samples of the model: :meth:`density_loss` and a class loss.

    .. math:: L = L_{\text{density}}(x + \epsilon) + w_{\text{clf}} \operatorname{mean} [\mathrm{lse} f - f_y]

    The class loss is there for more than one logit only. The validation loss is the same objective, of noise and
    slices that are drawn anew: unlike likelihoods up to a constant, its values can be compared between epochs, as far
    as their scatter allows.

    Random numbers come from a generator of each process, seeded with the global seed and the process's rank: all
    processes have the same global random state.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative number.
    """

    def __init__(
        self,
        network: Network,
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, input_noise, warmup_steps, optimizer, scheduler)
        if clf_weight < 0:
            raise ValueError(f"clf_weight must be at least 0, got {clf_weight}")
        self.clf_weight = clf_weight
        self.generator: torch.Generator | None = None

    @abstractmethod
    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Parts of the loss that train the density, and the logits ``[B, C]`` of ``x: [B, *data_shape]``.

        Called without autocast and with gradients. `y` are the labels ``[B]``.
        """

    def on_fit_start(self) -> None:
        self.generator = rank_generator(self.device, self.global_rank)

    def randn(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Standard normal numbers of this process."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def noisy(self, x: Tensor) -> Tensor:
        return x + self.input_noise * self.randn(x.shape) if self.input_noise else x

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": self.clf_weight * F.cross_entropy(logits, y)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self._parts(batch)[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        # Validation runs without gradients; some objectives are made of them.
        with torch.inference_mode(False), torch.enable_grad():
            parts, logits = self._parts({name: (x.clone(), y.clone()) for name, (x, y) in batch.items()})
        return {name: part.detach() for name, part in parts.items()}, self.probs_from(logits.detach())

    def _parts(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        x, y = batch["id"]
        # Differences of log-densities, and their derivatives even more, have no digits in half precision.
        with torch.autocast(x.device.type, enabled=False):
            parts, logits = self.density_loss(self.noisy(x.float()), y)
            self.note({"F/data": logits.logsumexp(-1).mean()})
            return parts | (self.class_loss(logits, y) if self.has_classes else {}), logits
