"""Search for the most confident input near given ones: does low confidence on noise hold against an adversary?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Method, scoring_mode
from uncertainty_est.samplers.ascent import ascend


class Metric(Protocol):
    """A norm's distance: the Euclidean one of whitened coordinates."""

    def whiten(self, x: Tensor) -> Tensor:
        """Affine, ``[B, *data_shape]`` or ``[B, D]`` to ``[B, D]`` float64."""
        ...

    def unwhiten(self, z: Tensor) -> Tensor:
        """The inverse, ``[B, D]`` to ``[B, D]``."""
        ...


@dataclass(frozen=True)
class Region:
    r"""For each of N seeds s, all x with :math:`d(x, s) \le R` in a box that holds s.

    Attributes:
        seeds: ``[N, *data_shape]`` float32.
        radius: R, ``[N]`` float64, at least 0.
        metric: d.
        low: the box's least values, ``[N, *data_shape]`` float32.
        high: its greatest, likewise.
    """

    seeds: Tensor
    radius: Tensor
    metric: Metric
    low: Tensor
    high: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    @cached_property
    def center(self) -> Tensor:
        """The seeds' whitened coordinates, ``[N, D]`` float64."""
        return self.metric.whiten(self.seeds)

    def take(self, rows: Tensor) -> Region:
        """The regions of some seeds, by position ``[M]``."""
        seeds, radius, low, high = (t[rows] for t in (self.seeds, self.radius, self.low, self.high))
        return Region(seeds, radius, self.metric, low, high)

    def inputs(self, z: Tensor) -> Tensor:
        """Whitened coordinates ``[N, D]`` as inputs ``[N, *data_shape]`` float32 of the box.

        Gradients are those of the affine map, also where the box cuts it off.
        """
        x = self.metric.unwhiten(z).view_as(self.seeds).float()
        return x + (x.clamp(self.low, self.high) - x).detach()

    def project(self, z: Tensor) -> Tensor:
        """Whitened coordinates ``[N, D]`` moved into the region, such that :meth:`inputs` of them are inside, rounded.

        Into the ball, into the box, then straight towards the seed until inside the ball again, which does not leave
        the box: it is convex and holds the seed. What float32 takes away from the inputs' digits is taken off the
        radius. Where the metric is oblique to the box and both cut off a step, this is not the nearest point.
        """
        center, radius = self.center, self.radius.unsqueeze(1)
        z = center + _shortened(z - center, radius)
        x = self.metric.unwhiten(z).view_as(self.seeds).clamp(self.low, self.high)
        z = self.metric.whiten(x)
        rounding = (self.metric.whiten(x.float()) - z).norm(dim=1, keepdim=True)
        return center + _shortened(z - center, (radius - 2 * rounding).clamp(min=0))

    def contains(self, x: Tensor) -> Tensor:
        """Which of ``x: [N, *data_shape]`` lie inside, ``[N]`` bool."""
        distance = (self.metric.whiten(x) - self.center).norm(dim=1)
        return (distance <= self.radius) & ((x >= self.low) & (x <= self.high)).flatten(1).all(1)


@dataclass(frozen=True)
class Attacked:
    """What an attack found for N seeds.

    Attributes:
        x: ``[N, *data_shape]``, inside the region.
        log_confidence: ``[N]``, nowhere below the seeds'.
    """

    x: Tensor
    log_confidence: Tensor


def attack(
    log_confidence: Callable[[Tensor], Tensor],
    region: Region,
    *,
    steps: int = 500,
    restarts: int = 50,
    step_size: float = 3.0,
    max_rows: int = 512,
    seed: int = 0,
) -> Attacked:
    r"""Maximise :math:`\max_c \ln p(c \mid x)` over a region by projected gradient ascent with restarts.

    Ascent is along the gradient in whitened coordinates, with the step size of each sample and restart
    adapted (:func:`~uncertainty_est.samplers.ascent.ascend`). The first restart begins at the seed, every other one at
    :math:`R\,(u - \tfrac12)` from it, u uniform in whitened coordinates, brought back into the region. Restart r
    begins at the same points whatever the number of restarts and rows, so that more restarts find no less. A point
    counts as found only if it lies in ball and box as it is, in float32. What is found is a lower bound of the maximum.

    References:
        Meinke and Hein, arXiv:1909.12180, Section 4.

    Args:
        log_confidence: ``[B, *data_shape] -> [B]``, differentiable, sample by sample.
        region: of N seeds.
        steps: of each restart.
        restarts: at least 1.
        step_size: of the first step.
        max_rows: at most this many samples, of all seeds and restarts, at once.
        seed: of the restarts' beginnings.
    """
    device = region.seeds.device
    found = region.seeds.clone()
    best = torch.cat([log_confidence(part).detach() for part in found.split(max_rows)]).double()
    movable = (region.radius > 0).nonzero().squeeze(1)
    for start in range(0, len(movable), max_rows):
        seeds = movable[start : start + max_rows]
        part = region.take(seeds)
        for numbers in torch.arange(restarts).split(max(1, max_rows // len(seeds))):
            rows = part.take(torch.arange(len(seeds), device=device).repeat(len(numbers)))
            # Drawn on the CPU, for all seeds at once: the same on every device and for any number of rows.
            offset = torch.cat([_offset(region, int(number), seed)[seeds.cpu()] for number in numbers]).to(device)
            z0 = rows.center + rows.radius.unsqueeze(1) * offset

            def objective(z: Tensor, rows: Region = rows) -> Tensor:
                x = rows.inputs(z)
                return log_confidence(x).double().where(rows.contains(x), -torch.inf)

            z = ascend(objective, z0, rows.project, steps, step_size)
            value, which = objective(z).detach().view(len(numbers), -1).max(0)
            x = rows.inputs(z).view(len(numbers), *part.seeds.shape)[which, torch.arange(len(seeds), device=device)]
            better = value > best[seeds]
            found[seeds] = torch.where(better.view(-1, *[1] * (found.ndim - 1)), x, found[seeds])
            best[seeds] = torch.maximum(value, best[seeds])
    return Attacked(found, best)


def log_confidence_of(method: Method, before: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[[Tensor], Tensor]:
    """``max_c ln p(c|x)`` of a method, ``[B, *data_shape] -> [B]``, with gradients where they are enabled.

    Args:
        method: one with classes.
        before: applied to x, from the space that is searched to the network's inputs.

    Raises:
        ConfigError: by the function, for a method whose probabilities pass no gradient back to the input.
    """

    def log_confidence(x: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with scoring_mode(method), torch.set_grad_enabled(differentiable):
            probs = method._predict(before(x)).probs
        assert probs is not None
        if differentiable and not probs.requires_grad:
            raise ConfigError(
                f"--attack: the class probabilities of {type(method).__name__} pass no gradient back to its input, so"
                " that there is nothing to follow; leave this run out"
            )
        # A probability of 0 has no logarithm, but the greatest of C is at least 1/C.
        return probs.amax(-1).log()

    return log_confidence


def _shortened(offset: Tensor, radius: Tensor) -> Tensor:
    """``[N, D]`` with norms cut to ``[N, 1]``."""
    norm = offset.norm(dim=1, keepdim=True)
    return offset * torch.where(norm > radius, radius / norm, 1.0)


def _offset(region: Region, number: int, seed: int) -> Tensor:
    """Where a restart begins, ``[N, D]`` float64 on the CPU, in units of the radius; the first one at the seed."""
    shape = (len(region), region.seeds[0].numel())
    if number == 0:
        return torch.zeros(shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed((seed << 32) + number)
    return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
