"""A density of images through a chain of bijections that sets aside half of the numbers between its stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est.densities.bijection import Bijection, Logit, Shape
from uncertainty_est.densities.dequantize import Dequantize


class Stage(Bijection):
    """Bijections one after another.

    Args:
        bijections: first to last.
    """

    def __init__(self, bijections: Sequence[Bijection]) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(())
        for bijection in self.bijections:
            x, part = bijection(x)
            log_det = log_det + part
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        members: Any = self.bijections
        for bijection in reversed(members):
            y = bijection.inverse(y)
        return y

    def output_shape(self, shape: Shape) -> Shape:
        members: Any = self.bijections
        for bijection in members:
            shape = bijection.output_shape(shape)
        return shape


class ImageFlow(nn.Module):
    r"""Multi-scale flow of discrete images: dequantised, through a logit, through the stages, to the standard normal.

    After every stage but the last, the second half of the channels is a part of the latent, and the first goes on.

    .. math:: \ln p(x) = \ln \mathcal N(T(y); 0, I) + \ln |\det J_T(y)| - D \ln L

    for an image x of L grey levels at its dequantised :math:`y \in [0, 1]^D`. The flow has a density on the slightly
    larger cube that the logit (:class:`~uncertainty_est.densities.bijection.Logit`) can take; mass outside of
    [0, 1]^D is no image's, so that probabilities of all images together are at most 1.

    References:
        Dinh, Sohl-Dickstein and Bengio, arXiv:1605.08803, Eqs. 2-3 and section 3.6.

    Args:
        data_shape: ``(C, H, W)``.
        stages: bijections of every stage, first to last.
        levels: L, the grey levels of a pixel.
    """

    def __init__(self, data_shape: Shape, stages: Sequence[Sequence[Bijection]], levels: int = 256) -> None:
        super().__init__()
        self.data_shape = data_shape
        self.dequantize = Dequantize(data_shape, levels)
        self.logit = Logit()
        self.stages = nn.ModuleList(Stage(stage) for stage in stages)
        self.latent_shapes = self._latent_shapes()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[B]`` in nats of images ``x: [B, C, H, W]``, differentiable.

        Strictly, their lower bounds by dequantisation, averaged over its draws. An image with a value outside [0, 1],
        or NaN, has no probability: the lowest finite float32, without gradient.
        """
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        # Harmless numbers in place of the others, since 0 times an infinite gradient would be NaN.
        y = self.dequantize(torch.where(inside.view(-1, 1, 1, 1), x, 0.5))
        log_p = self.log_density(y.flatten(0, 1)).view(-1, len(x)).mean(0)
        log_p = log_p - math.prod(self.data_shape) * math.log(self.dequantize.levels)
        return torch.where(inside, log_p, torch.finfo(torch.float32).min)

    def log_density(self, y: Tensor) -> Tensor:
        """Log-densities ``[B]`` of continuous images ``y: [B, C, H, W]`` in the cube around [0, 1]^D."""
        v, log_det_logit = self.logit(y)
        z, log_det = self.transform(v)
        log_normal = -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return log_normal + log_det + log_det_logit

    def transform(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[B, D]`` and log-determinants ``[B]`` of ``v: [B, C, H, W]``."""
        log_det = v.new_zeros(len(v))
        latents = []
        for i, stage in enumerate(self.stages):
            if i:
                v, aside = v.chunk(2, dim=1)
                latents.append(aside.flatten(1))
            v, part = stage(v)
            log_det = log_det + part
        return torch.cat([*latents, v.flatten(1)], dim=1), log_det

    def invert(self, z: Tensor) -> Tensor:
        """``v: [B, C, H, W]`` whose latent is ``z: [B, D]``."""
        parts = z.split([math.prod(shape) for shape in self.latent_shapes], dim=1)
        latents = [part.unflatten(1, shape) for part, shape in zip(parts, self.latent_shapes, strict=True)]
        v = latents.pop()
        stages: Any = self.stages
        for i, stage in reversed(list(enumerate(stages))):
            v = stage.inverse(v)
            if i:
                v = torch.cat([v, latents.pop()], dim=1)
        return v

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw images ``[n, C, H, W]`` in [0, 1], of the L grey levels.

        Args:
            n: how many.
            generator: on the flow's device; draws come from it alone.
            temperature: factor of the latents; below 1, samples are nearer to the mode and vary less.

        Raises:
            ValueError: a negative `temperature`.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        like = next(self.parameters())
        size = (n, math.prod(self.data_shape))
        z = torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)
        return self.dequantize.inverse(self.logit.inverse(self.invert(temperature * z)))

    def _latent_shapes(self) -> list[Shape]:
        """Of what each stage sets aside, and of what the last one puts out."""
        stages: Any = self.stages
        shapes: list[Shape] = []
        shape = self.data_shape
        for i, stage in enumerate(stages):
            if i:
                channels, height, width = shape
                shape = (channels // 2, height, width)
                shapes.append(shape)
            shape = stage.output_shape(shape)
        return [*shapes, shape]


def halvings(data_shape: Shape) -> int:
    """How often height and width of ``(C, H, W)`` can both be halved."""
    size = math.gcd(data_shape[1], data_shape[2])
    return (size & -size).bit_length() - 1
