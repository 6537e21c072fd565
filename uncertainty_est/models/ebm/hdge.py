"""Hybrid discriminative and generative training by contrast with the logits of past inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from uncertainty_est.models.base import Batch
from uncertainty_est.models.ebm.objective import ObjectiveModel
from uncertainty_est.networks.base import Network


class HDGE(ObjectiveModel):
    r"""Classifier whose joint density is contrasted with the inputs of the last steps in place of a sampler.

    For normalised logits :math:`p = f(x) / \lVert f(x) \rVert` of a batch, :math:`n_k` of a queue of past ones, and
    weights d of the classes,

    .. math:: L_d = \operatorname{mean} \Bigl[ -\ln \frac{e^{g_d(p) / T}}{e^{g_d(p) / T} + \sum_k e^{g_d(n_k) / T}}
        \Bigr], \quad g_d(p) = \ln \sum_c e^{d_c p_c}

    .. math:: L = w_x L_{\mathbf 1} + w_{xy} L_{\mathrm{onehot}(y)}
        + w_{\text{clf}} \operatorname{mean} [\mathrm{lse} f - f_y]

    The first term is for p(x), the second for p(x | y). Places of the queue that no input has filled yet do not count;
    a step's own logits enter it after the loss, once, those of all processes together.

    References:
        Liu and Abbeel, arXiv:2007.09070 (named hybrid discriminative generative energy-based models there).

    Args:
        network: its logits ``[B, C]`` are f, C at least 2.
        px_weight: :math:`w_x`.
        pxy_weight: :math:`w_{xy}`.
        queue_size: places of the queue.
        temperature: T.
        clf_weight: weight of the class loss.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a negative weight, a temperature that is not positive, no queue, or a single logit.
    """

    def __init__(
        self,
        network: Network,
        px_weight: float = 0.0,
        pxy_weight: float = 1.0,
        queue_size: int = 65536,
        temperature: float = 0.1,
        clf_weight: float = 1.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, clf_weight, input_noise, warmup_steps, optimizer, scheduler)
        if px_weight < 0 or pxy_weight < 0:
            raise ValueError(f"px_weight and pxy_weight must be at least 0, got {px_weight} and {pxy_weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not self.has_classes:
            raise ValueError("network must have at least 2 logits for HDGE, got num_classes 1")
        self.px_weight = px_weight
        self.pxy_weight = pxy_weight
        self.temperature = temperature
        self.queue = LogitQueue(network.head.out_features, queue_size)
        self.keep_from_ddp("queue")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        parts, logits = self._parts(batch)
        self.queue.push(_gathered(F.normalize(logits.detach(), dim=-1)))
        return parts

    def density_loss(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.logits(x)
        p = F.normalize(logits, dim=-1)
        past, empty = self.queue.logits, ~self.queue.filled()
        parts = {}
        if self.px_weight:
            negatives = self._log_sum(past.logsumexp(0), empty)
            parts["px"] = self.px_weight * self._contrast(p.logsumexp(-1), negatives)
        if self.pxy_weight:
            others = float(p.shape[-1] - 1)  # each class of weight 0 leaves e^0 in the sum
            positive = _log_plus(p.gather(-1, y.unsqueeze(-1)).squeeze(-1), others)
            # The past logits under every class; those of a label are a row of it.
            negatives = self._log_sum(_log_plus(past, others), empty)
            parts["pxy"] = self.pxy_weight * self._contrast(positive, negatives[y])
        return parts, logits

    def _log_sum(self, g: Tensor, empty: Tensor) -> Tensor:
        """Log-sum of ``exp(g / T)`` over the filled places of ``g: [..., K]``; minus infinity if there are none."""
        return (g / self.temperature).masked_fill(empty, -torch.inf).logsumexp(-1)

    def _contrast(self, positive: Tensor, negatives: Tensor) -> Tensor:
        return F.softplus(negatives - positive / self.temperature).mean()


class LogitQueue(nn.Module):
    """The last K vectors that were pushed, first in, first out.

    Args:
        dim: C, length of a vector.
        size: K.

    Raises:
        ValueError: `size` below 1.
    """

    logits: Tensor
    pushed: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size must be at least 1, got {size}")
        self.register_buffer("logits", torch.zeros(dim, size))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def filled(self) -> Tensor:
        """Which places hold a vector, ``[K]`` bool."""
        return torch.arange(self.logits.shape[1], device=self.logits.device) < self.pushed

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Put ``vectors: [B, C]`` in the places of the oldest ones; of more than K, the last K."""
        size = self.logits.shape[1]
        last = vectors[-size:]
        first = self.pushed + len(vectors) - len(last)
        places = (first + torch.arange(len(last), device=last.device)) % size
        self.logits[:, places] = last.T.to(self.logits)
        self.pushed += len(vectors)


def _log_plus(a: Tensor, others: float) -> Tensor:
    return (a.exp() + others).log()


def _gathered(vectors: Tensor) -> Tensor:
    """The vectors of all processes, whose batches are of one size, in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)
