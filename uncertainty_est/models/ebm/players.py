"""Manual optimisation of several sets of parameters, each with its own optimiser, warm-up and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from uncertainty_est.models.ebm.energy import cool_down, warm_up


@dataclass(frozen=True)
class Player:
    """Parameters that are trained by one optimiser.

    Attributes:
        parameters: all that :meth:`minimise` may change.
        optimizer: of these parameters.
        by_batch: what changes the optimiser's own learning rate once a batch.
        decay: stepped once an epoch.
    """

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    by_batch: list[LRScheduler]
    decay: LRScheduler | None

    @classmethod
    def make(
        cls,
        parameters: Iterable[nn.Parameter],
        make_optimizer: Callable[..., torch.optim.Optimizer],
        warmup_steps: int,
        make_decay: Callable[..., Any] | None = None,
        falls: tuple[int, int] | None = None,
    ) -> Player:
        """A player whose learning rate rises linearly in `warmup_steps` batches (0: is there at once).

        With `falls` it goes down to a hundredth between these two batches, see :func:`cool_down`.
        """
        own = list(parameters)
        optimizer = make_optimizer(own)
        by_batch = [warm_up(optimizer, warmup_steps)] if warmup_steps else []
        if falls is not None:
            by_batch.append(cool_down(optimizer, *falls))
        return cls(own, optimizer, by_batch, make_decay(optimizer) if make_decay else None)

    @property
    def schedulers(self) -> list[LRScheduler]:
        """Those of each batch, then that of each epoch."""
        return [*self.by_batch, *([self.decay] if self.decay is not None else [])]

    def minimise(
        self, method: pl.LightningModule, loss: Tensor, clip_norm: float | None = None, counts: bool = True
    ) -> None:
        """One step down the gradient of `loss` in these parameters, averaged over processes; no others get gradients.

        Args:
            method: with manual optimisation, inside its training step.
            loss: scalar.
            clip_norm: largest norm of the gradient.
            counts: whether the step is counted in the trainer's ``global_step``, and so in ``max_steps``. One step of
                a batch should be.
        """
        strategy = method.trainer.strategy
        self.optimizer.zero_grad()
        # DDP waits for the gradients of all its parameters; here they are averaged without it.
        with strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext():
            method.manual_backward(loss, inputs=self.parameters)
        if method.trainer.world_size > 1:
            self._average_gradients(method)
        if clip_norm is not None:
            method.clip_gradients(self.optimizer, clip_norm, "norm")
        if counts:
            optimizers = method.optimizers()
            known = optimizers if isinstance(optimizers, list) else [optimizers]
            next(o for o in known if o.optimizer is self.optimizer).step()
        else:
            strategy.optimizer_step(self.optimizer, closure=lambda: None)

    def _average_gradients(self, method: pl.LightningModule) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        mean = method.trainer.strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        assert isinstance(mean, Tensor)
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
