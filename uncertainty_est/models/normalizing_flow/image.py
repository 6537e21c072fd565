"""What methods share that are a normalising flow of images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from uncertainty_est.densities.image_flow import ImageFlow
from uncertainty_est.densities.per_class import PerClass
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch
from uncertainty_est.models.density import DensityMethod


class ImageFlowMethod(DensityMethod):
    """Base of flows of images in [0, 1]; a subclass says which flow.

    Args:
        make_flow: called once for each density.
    """

    can_sample = True

    @abstractmethod
    def __init__(
        self,
        make_flow: Callable[[], ImageFlow],
        data_shape: Sequence[int],
        num_classes: int,
        discriminative: bool,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        scheduler: Callable[..., Any] | None,
    ) -> None:
        super().__init__(data_shape, num_classes, discriminative, optimizer, scheduler)
        self.density = PerClass([make_flow() for _ in range(num_classes)])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density.log_prob(x)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.density.sample(n, generator)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuses data on another scale before the first step, where every loss would be infinite.

        Raises:
            ConfigError: a value outside [0, 1].
        """
        if self.current_epoch or batch_idx:
            return
        low, high = torch.stack(batch["id"][0].aminmax()).tolist()
        if low < 0 or high > 1:
            raise ConfigError(
                f"fixed.transform: {type(self).__name__} takes images in [0, 1], got values from {low:.3g} to"
                f" {high:.3g}; set fixed.transform.mean=0 and fixed.transform.std=1"
            )
