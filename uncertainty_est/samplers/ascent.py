"""Gradient ascent on every input of a batch at once, each with a step size of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uncertainty_est.samplers.sgld import value_and_gradient

GROWTH, SHRINKAGE = 1.1, 0.5


def _raw(gradient: Tensor) -> Tensor:
    return gradient


def _unit(gradient: Tensor) -> Tensor:
    norm = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / _per_sample(norm, gradient)


# What is done with a gradient before it is a step.
DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"raw": _raw, "sign": torch.sign, "l2": _unit}


def ascend(
    objective: Callable[[Tensor], Tensor],
    x0: Tensor,
    project: Callable[[Tensor], Tensor],
    steps: int,
    step_size: float,
    direction: str = "raw",
) -> Tensor:
    r"""Projected gradient ascent from `x0`, with backtracking of every sample.

    .. math:: x' = \Pi(x + \eta\, d(\nabla g(x))), \qquad (x, \eta) \leftarrow
        \begin{cases} (x', 1.1 \eta) & g(x') \ge g(x) \\ (x, \eta / 2) & \text{otherwise} \end{cases}

    A sample stays where it is when a step would make its objective worse or not a number, so that the point it ends at
    is the best of all that it has seen. Samples do not see each other's gradients as long as the objective of one does
    not depend on another: put networks into eval mode before. Parameters get no gradients. The global random state is
    not touched.

    References:
        Madry et al., arXiv:1706.06083. The rule of the step size: Meinke and Hein, arXiv:1909.12180.

    Args:
        objective: :math:`g`, ``[B, ...] -> [B]``, differentiable; evaluated ``steps + 1`` times, in full precision also
            under autocast.
        x0: ``[B, ...]``, floating.
        project: :math:`\Pi`, ``[B, ...] -> [B, ...]`` on the feasible set, sample by sample.
        steps: number of steps.
        step_size: :math:`\eta` of the first step.
        direction: d, ``"raw"`` (the gradient itself), ``"sign"`` or ``"l2"`` (divided by its Euclidean norm).

    Returns:
        ``[B, ...]`` in the feasible set, without gradients; its objective is nowhere below that of ``project(x0)``.

    Raises:
        ValueError: a negative number of steps, a step size that is not positive, or an unknown direction.
    """
    if steps < 0 or not step_size > 0:
        raise ValueError(f"steps must be at least 0 and step_size positive, got {steps} and {step_size}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got '{direction}'")
    # Half precision cannot tell neighbouring points apart.
    with torch.no_grad(), torch.autocast(x0.device.type, enabled=False):
        x = project(x0)
        value, gradient = value_and_gradient(objective, x)
        size = torch.full_like(value, step_size)
        for _ in range(steps):
            moved = project(x + _per_sample(size, x) * DIRECTIONS[direction](gradient))
            value_there, gradient_there = value_and_gradient(objective, moved)
            accept = value_there >= value
            x = torch.where(_per_sample(accept, x), moved, x)
            gradient = torch.where(_per_sample(accept, x), gradient_there, gradient)
            value = torch.where(accept, value_there, value)
            size = size * torch.where(accept, GROWTH, SHRINKAGE)
    return x


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, ...]``, to go with `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def ascending_step(x: Tensor, gradient: Tensor, epsilon: float | Tensor, std: Tensor) -> Tensor:
    r"""Inputs moved to raise a score by the signs of its gradient, :math:`x + \epsilon\, \mathrm{sign}(\nabla) / s`.

    References:
        Liang et al., arXiv:1706.02690, Eq. 2. Lee et al., arXiv:1807.03888, Eq. 3.

    Args:
        x: network inputs, ``[B, *data_shape]``.
        gradient: of the score of each input in it, likewise.
        epsilon: in raw units, of pixels in [0, 1].
        std: s, the standard deviation that the transform divides raw units by, a scalar or ``[C, 1, 1]``.
    """
    return x + epsilon * gradient.sign() / std
