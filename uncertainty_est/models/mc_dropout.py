"""MC dropout: the average over sub-networks that dropout draws at test time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from uncertainty_est import measures
from uncertainty_est.models.base import Prediction
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network


class MCDropout(CEBaseline):
    r"""Classifier trained with dropout, averaged over T drawn masks: :math:`\bar p = \tfrac1T \sum_t p_t`.

    The T sets of masks are drawn from `mask_seed` and shared by all inputs: each input sees T independent draws, as
    in the paper, and its scores depend neither on its batch mates nor on what was scored before. Modules stay in
    eval mode throughout, so batch normalisation uses its running statistics.

    Scores: ``MI`` (negative mutual information, the headline), ``Entropy`` (negative :math:`H[\bar p]`),
    ``Variance`` (negative, mean over classes) and ``max p(y|x)``.

    References:
        Gal and Ghahramani, arXiv:1506.02142, Eq. 6. Masks shared by a pass: Kirsch et al., arXiv:1906.08158, Sec. 3.

    Args:
        network: its dropout layers (``nn.Dropout``, ``Dropout1d/2d/3d``) drop: ``fixed.model_config.network.dropout``.
        num_samples: T, at least 2.
        mask_seed: seed of the masks.

    Raises:
        ValueError: fewer than 2 samples, or a network that drops nothing.
    """

    def __init__(
        self,
        network: Network,
        num_samples: int = 10,
        mask_seed: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {num_samples}")
        if not any(isinstance(m, _DropoutNd) and m.p > 0 for m in network.modules()):
            raise ValueError("the network drops nothing; set fixed.model_config.network.dropout above 0")
        self.num_samples = num_samples
        self.mask_seed = mask_seed

    def sample_probs(self, x: Tensor) -> Tensor:
        """Probabilities ``[T, B, C]`` of ``x: [B, *data_shape]`` under T fixed sets of masks."""
        generator = torch.Generator().manual_seed(self.mask_seed)
        with fixed_masks(self.network, generator):
            return torch.stack([self.network(x).float().softmax(-1) for _ in range(self.num_samples)])

    def _predict(self, x: Tensor) -> Prediction:
        probs = self.sample_probs(x)
        return Prediction(probs.mean(0), measures.member_scores(probs))


@contextmanager
def fixed_masks(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Inside, every dropout layer in eval mode multiplies by a mask drawn anew at each call, equal for the whole batch.

    The masks are drawn on the CPU, in the order in which the layers run, so that they are the same on every device.
    """

    def mask(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, _DropoutNd)
        # nn.Dropout drops single units, Dropout1d/2d/3d whole channels.
        shape = output.shape[1:] if isinstance(module, nn.Dropout) else (output.shape[1], *[1] * (output.ndim - 2))
        keep = torch.rand(shape, generator=generator) >= module.p
        scale = 1 / (1 - module.p) if module.p < 1 else 0.0
        return output * (keep.to(output) * scale)

    hooks = [m.register_forward_hook(mask) for m in network.modules() if isinstance(m, _DropoutNd)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
