r"""Log-determinant of :math:`I + J` where J is the Jacobian of a contraction: exact, or by its power series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Series:
    r"""How :math:`\ln\det(I + J) = \sum_{k \ge 1} \tfrac{(-1)^{k+1}}{k} \operatorname{tr} J^k` is estimated.

    The traces are :math:`\operatorname{mean}_v v^\top J^k v` over probes v with :math:`\mathrm E\, v v^\top = I`.
    In training a fixed number of terms, or the roulette's: `n_exact_terms` for certain, and after each further one
    the sum ends with `stop_probability`. The terms that can be missed are divided by their probability, which makes
    the sum unbiased; its variance is finite where :math:`\lVert J \rVert^2 < 1 - p` for a `stop_probability` of p.
    In evaluation `n_eval_terms` terms and the same `n_eval_probes` probes for every input.

    References:
        Behrmann et al., arXiv:1811.00995, Eqs. 3 and 4; roulette: Chen et al., arXiv:1906.02735, Eq. 6.

    Args:
        n_terms: of the truncated series in training.
        n_probes: for each input, in training.
        n_exact_terms: of the roulette.
        stop_probability: of the roulette.
        n_eval_terms: in evaluation.
        n_eval_probes: in evaluation.
        probe: ``rademacher`` (signs, of smaller variance) or ``gaussian``.

    Raises:
        ValueError: a number out of its range, or an unknown `probe`.
    """

    n_terms: int = 10
    n_probes: int = 1
    n_exact_terms: int = 2
    stop_probability: float = 0.3
    n_eval_terms: int = 20
    n_eval_probes: int = 8
    probe: str = "rademacher"

    def __post_init__(self) -> None:
        for name in ("n_terms", "n_probes", "n_exact_terms", "n_eval_terms", "n_eval_probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.stop_probability < 1:
            raise ValueError(f"stop_probability must lie between 0 and 1, got {self.stop_probability}")
        if self.probe not in ("rademacher", "gaussian"):
            raise ValueError(f"probe must be 'rademacher' or 'gaussian', got '{self.probe}'")

    def draw_probes(self, shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Probes of `shape`, with the type and device of `like`."""
        v = torch.randn(*shape, dtype=like.dtype, device=like.device, generator=generator)
        # A Gaussian is never zero but for rounding, and has the signs that are wanted.
        return v if self.probe == "gaussian" else torch.where(v < 0, -1.0, 1.0).to(like)

    def draw_coefficients(self) -> list[float]:
        """Coefficients of tr J, tr J², … of one draw of the roulette."""
        # On the CPU, so that no device waits for the number of terms.
        uniform = torch.rand((), dtype=torch.float64).item()
        stay = 1 - self.stop_probability
        n = self.n_exact_terms + int(math.log1p(-uniform) / math.log(stay))
        survival = [stay ** max(k - self.n_exact_terms, 0) for k in range(1, n + 1)]
        return [c / q for c, q in zip(coefficients(n), survival, strict=True)]


def coefficients(n_terms: int) -> list[float]:
    """Those of tr J, tr J², … in the series cut off after `n_terms`."""
    return [(-1) ** (k + 1) / k for k in range(1, n_terms + 1)]


def truncation_bound(dim: int, lipschitz: float, n_terms: int) -> float:
    r"""The most by which the series cut off after n terms can miss the log-determinant, in nats.

    :math:`D \bigl( -\ln(1 - c) - \sum_{k \le n} c^k / k \bigr)` for a Lipschitz constant c.

    References:
        Behrmann et al., arXiv:1811.00995, Theorem 3.

    Args:
        dim: D, number of dimensions.
        lipschitz: c, below 1.
        n_terms: n.
    """
    return dim * (-math.log1p(-lipschitz) - sum(lipschitz**k / k for k in range(1, n_terms + 1)))


class LogDet(nn.Module):
    r""":math:`\ln\det(I + \partial y / \partial x)` of each input, for ``y = F(x)`` that autograd has recorded.

    Exact through the whole Jacobian, whose cost is D products with it, or by the power series. The series draws from
    the global generator in training mode; in evaluation mode it is a function of the input alone.

    Args:
        shape: of one input.
        training: ``exact``, ``series`` (cut off, so biased) or ``roulette`` (unbiased), in training mode.
        evaluation: ``exact`` or ``series``, in evaluation mode.
        series: settings of the two that are not exact.
        seed: of the probes of evaluation.

    Raises:
        ValueError: an unknown kind.
    """

    probes: Tensor | None

    def __init__(
        self,
        shape: Sequence[int],
        training: str = "roulette",
        evaluation: str = "series",
        series: Series | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if training not in ("exact", "series", "roulette"):
            raise ValueError(f"log_det must be 'exact', 'series' or 'roulette', got '{training}'")
        if evaluation not in ("exact", "series"):
            raise ValueError(f"eval_log_det must be 'exact' or 'series', got '{evaluation}'")
        self.kinds: dict[bool, Literal["exact", "series", "roulette"]]
        self.kinds = {True: training, False: evaluation}  # type: ignore[dict-item]
        self.series = series or Series()
        probes = None
        if evaluation == "series":
            generator = torch.Generator().manual_seed(seed)
            probes = self.series.draw_probes([self.series.n_eval_probes, 1, *shape], torch.zeros(()), generator)
        self.register_buffer("probes", probes)

    def forward(self, y: Tensor, x: Tensor, differentiable: bool = True) -> Tensor:
        """``[B]`` for ``y = F(x)`` and ``x``, both ``[B, *shape]``.

        Args:
            y: depends on `x` through a graph that is kept.
            x: requires a gradient.
            differentiable: keep a graph of the result; costs memory.
        """
        kind = self.kinds[self.training]
        if kind == "exact":
            return exact_log_det(y, x, differentiable)
        if not self.training:
            assert self.probes is not None
            probes = self.probes.expand(-1, *x.shape)
            return power_series(y, x, probes, coefficients(self.series.n_eval_terms), differentiable)
        probes = self.series.draw_probes([self.series.n_probes, *x.shape], x)
        terms = coefficients(self.series.n_terms) if kind == "series" else self.series.draw_coefficients()
        return neumann_series(y, x, probes, terms)

    def extra_repr(self) -> str:
        return f"training={self.kinds[True]}, evaluation={self.kinds[False]}"


def exact_log_det(y: Tensor, x: Tensor, differentiable: bool = True) -> Tensor:
    """``[B]`` from the Jacobians of ``y = F(x)``, ``[B, D, D]``; x and y as in :class:`LogDet`."""
    dim = x[0].numel()
    eye = torch.eye(dim, dtype=x.dtype, device=x.device)
    units = eye.view(dim, 1, *x.shape[1:]).expand(dim, *x.shape)
    jacobian = _products(y, x, units, differentiable).flatten(2).transpose(0, 1)
    return torch.linalg.slogdet(eye + jacobian).logabsdet


def power_series(y: Tensor, x: Tensor, probes: Tensor, terms: Sequence[float], differentiable: bool = True) -> Tensor:
    r""":math:`\sum_k a_k \operatorname{mean}_v v^\top J^k v`, ``[B]``; its gradient is the exact one of this sum.

    Args:
        y: ``F(x)``, see :class:`LogDet`.
        x: ``[B, *shape]``.
        probes: v, ``[P, B, *shape]``.
        terms: coefficients :math:`a_1, a_2, \dots`
        differentiable: keep the graph of all products.
    """
    total, product = x.new_zeros(len(x)), probes
    for coefficient in terms:
        product = _products(y, x, product, differentiable)
        total = total + coefficient * _mean_dot(product, probes)
    return total


def neumann_series(y: Tensor, x: Tensor, probes: Tensor, terms: Sequence[float]) -> Tensor:
    r"""The value of :func:`power_series`, with another gradient of the same mean that costs one product's memory.

    .. math:: \partial \sum_k a_k \operatorname{tr} J^k = \mathrm E_v \Bigl[ \Bigl( \sum_k k a_k\, v^\top J^{k-1}
        \Bigr) (\partial J)\, v \Bigr]

    The products before the last one are constants, so that no graph of them is kept.

    References:
        Chen et al., arXiv:1906.02735, Eq. 8.
    """
    left, product = torch.zeros_like(probes), probes
    value = x.new_zeros(len(x))
    for k, coefficient in enumerate(terms, 1):
        left = left + k * coefficient * product
        product = _products(y, x, product, False)
        value = value + coefficient * _mean_dot(product, probes)
    surrogate = _mean_dot(_products(y, x, left, True), probes)
    return surrogate + (value - surrogate).detach()


def _products(y: Tensor, x: Tensor, cotangents: Tensor, differentiable: bool) -> Tensor:
    """``cotangents: [P, B, *shape]`` times the Jacobian of y by x, each for itself."""
    # One by one: batched by vmap they take as long, or longer where there are convolutions, and P times the memory.
    return torch.stack(
        [torch.autograd.grad(y, x, v, retain_graph=True, create_graph=differentiable)[0] for v in cotangents.unbind()]
    )


def _mean_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(2).sum(-1).mean(0)
