"""Score matching: fit the gradient of a log-density without its normalising constant."""

from __future__ import annotations

import torch
from torch import Tensor

SLICES = ("gaussian", "rademacher")


def draw_slices(like: Tensor, kind: str, generator: torch.Generator | None = None) -> Tensor:
    r"""Random directions v with :math:`\mathbb E[v v^\top] = I`, one for each row of `like`, in its shape.

    Args:
        like: ``[B, ...]``.
        kind: ``"gaussian"``, or ``"rademacher"`` for independent signs, with which :math:`v^\top H v` is exactly the
            trace of a diagonal H.
        generator: on the device of `like`; the global one if not given.

    Raises:
        ValueError: another `kind`.
    """
    if kind not in SLICES:
        raise ValueError(f"slices must be one of {', '.join(map(repr, SLICES))}, got '{kind}'")
    if kind == "gaussian":
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    signs = torch.randint(2, like.shape, generator=generator, device=like.device)
    return (2 * signs - 1).to(like.dtype)


def sliced_score_matching(log_density: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two terms of sliced score matching with reduced variance, for every sample.

    .. math:: \tfrac12 \lVert s(x) \rVert^2 + v^\top (\nabla_x s(x))\, v, \quad s(x) = \nabla_x F(x)

    summed over all dimensions of x. In expectation over v this is exact score matching,
    :math:`\tfrac12 \lVert s \rVert^2 + \operatorname{tr} \nabla_x s`, which is least, over x from the data, where s is
    the data's own score. Both terms are differentiable in the parameters of F.

    F must have second derivatives: with piecewise linear activations the second term knows a log-sum-exp over several
    logits only, and is zero for a single one.

    References:
        Song et al., arXiv:1905.07088, Eq. 8 (with the first term exact, "SSM-VR").

    Args:
        log_density: F, ``[B]``, computed from `x`; F of a row depends on this row alone.
        x: ``[B, ...]``, requires gradients.
        v: slices, of the shape of `x`.

    Returns:
        The squared norm halved, and the curvature along v: ``[B]`` each.
    """
    (score,) = torch.autograd.grad(log_density.sum(), x, create_graph=True)
    along = (score * v).sum()
    # A score that does not depend on x, as of a linear F, has no curvature.
    (product,) = torch.autograd.grad(along, x, create_graph=True, allow_unused=True, materialize_grads=True)
    return 0.5 * score.square().flatten(1).sum(1), (product * v).flatten(1).sum(1)
