"""Flows of linear maps whose determinants are cheap because their factors are, or ought to be, orthogonal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est.densities.base import check_positive
from uncertainty_est.densities.bijection import Bijection

EXACT_KINDS = ("svd", "svd_mat_exp")
KINDS = (*EXACT_KINDS, "reparameterized", "orthogonal")

# Newton's method with a start that makes it monotone: far more steps than any slope that occurs needs.
_NEWTON_STEPS = 50


class LeakyELU(Bijection):
    r""":math:`f(x) = a x + (1 - a) \operatorname{elu}(x)`, elementwise; its slope runs from a at the left to 1 at 0.

    With a = 0, ELU itself, f reaches numbers above -1 only: a density through it has mass below 1. With a = 1 it is
    the identity, with a above 1 concave.

    Args:
        dim: numbers of one input, ``[B, dim]``.
        negative_slope: a, or its start.
        learn: one a for each of the numbers, learnt.

    Raises:
        ValueError: a negative slope, or one of 0 to be learnt, which learns on a logarithmic scale.
    """

    log_slope: Tensor

    def __init__(self, dim: int, negative_slope: float = 0.1, learn: bool = False) -> None:
        super().__init__()
        if not 0 <= negative_slope < math.inf or (learn and negative_slope == 0):
            bound = "positive" if learn else "at least 0"
            raise ValueError(f"negative_slope must be {bound} and finite, got {negative_slope}")
        self.onto = negative_slope > 0
        log_slope = torch.full((dim,), math.log(negative_slope) if self.onto else -math.inf)
        if learn:
            self.log_slope = nn.Parameter(log_slope)
        else:
            self.register_buffer("log_slope", log_slope)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, negative = self.log_slope.exp(), x.clamp(max=0)
        y = x.clamp(min=0) + a * negative + (1 - a) * negative.expm1()
        # The exponential of ELU's own slope may underflow, its logarithm does not.
        log_slope = (a + (1 - a) * negative.exp()).log() if self.onto else negative
        return y, log_slope.sum(1)

    @torch.no_grad()
    def inverse(self, y: Tensor) -> Tensor:
        """The ``x`` whose image is ``y``.

        Raises:
            ValueError: `negative_slope` is 0, so that not every number is an image.
        """
        if not self.onto:
            raise ValueError("negative_slope must be positive for the flow to have an inverse, got 0")
        a, negative = self.log_slope.exp(), y.clamp(max=0)
        x = torch.zeros_like(negative)
        for _ in range(_NEWTON_STEPS):
            value = a * x + (1 - a) * x.expm1() - negative
            x = x - value / (a + (1 - a) * x.exp())
        return torch.where(y < 0, x, y)


class LinearMaps(Bijection):
    r"""L linear maps of the flattened input, with :class:`LeakyELU` between them.

    ===================  =================================  ========================  =======================
    kind                 map                                log-determinant           U and V
    ===================  =================================  ========================  =======================
    ``svd``              :math:`U e^{\sigma} V^\top x + b`  :math:`\sum_i \sigma_i`   :func:`reflections`
    ``svd_mat_exp``      :math:`U e^{\sigma} V^\top x + b`  :math:`\sum_i \sigma_i`   :func:`rotations`
    ``reparameterized``  :math:`U e^{\sigma} V^\top x + b`  :math:`\sum_i \sigma_i`   any matrices
    ``orthogonal``       :math:`U x`                        0                         any matrices
    ===================  =================================  ========================  =======================

    The first two have orthogonal factors, so that a flow of them is a normalised density. The log-determinants of
    the last two are approximations, good as long as :meth:`penalty` keeps their factors near to orthogonal: what comes
    of them is no normalised density.

    Args:
        dim: D, numbers of one input.
        num_layers: L.
        kind: see above.
        negative_slope: of :class:`LeakyELU`; 1 and not learnt is none.
        learn_slope: learn it, for each number of each layer.

    Raises:
        ValueError: an unknown kind, or a number out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 20,
        kind: str = "svd",
        negative_slope: float = 0.1,
        learn_slope: bool = False,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_layers=num_layers)
        if kind not in KINDS:
            raise ValueError(f"flow must be one of {', '.join(repr(known) for known in KINDS)}, got '{kind}'")
        self.is_exact = kind in EXACT_KINDS
        self.has_scales = kind != "orthogonal"
        self.kind = kind
        self.raw_u = self._draw(num_layers, dim)
        if self.has_scales:
            self.raw_v = self._draw(num_layers, dim)
            self.log_scale = nn.Parameter(torch.zeros(num_layers, dim))
            # Drawn, so that the functions between the maps do not all bend in one place.
            self.bias = nn.Parameter(torch.empty(num_layers, dim).uniform_(-1, 1))
        self.between = nn.ModuleList(LeakyELU(dim, negative_slope, learn_slope) for _ in range(num_layers - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.flatten(1)
        log_det = self.log_scale.sum() if self.has_scales else y.new_zeros(())
        for i, matrix in enumerate(self.matrices()):
            if i:
                y, part = self.between[i - 1](y)
                log_det = log_det + part
            y = torch.addmm(self.bias[i], y, matrix.T) if self.has_scales else y @ matrix.T
        return y.view_as(x), log_det

    @torch.no_grad()
    def inverse(self, y: Tensor) -> Tensor:
        """The ``x`` whose image is ``y``, by solving with the maps themselves, whatever their factors.

        Raises:
            ValueError: `negative_slope` is 0.
        """
        x = y.flatten(1)
        matrices = self.matrices()
        between: Any = self.between
        for i in range(len(matrices) - 1, -1, -1):
            if self.has_scales:
                x = x - self.bias[i]
            x = torch.linalg.solve(matrices[i], x.T).T
            if i:
                x = between[i - 1].inverse(x)
        return x.reshape(y.shape)

    def factors(self) -> list[Tensor]:
        """U, and V where there is one, of all layers, each ``[L, D, D]``."""
        raw: list[Tensor] = [self.raw_u, self.raw_v] if self.has_scales else [self.raw_u]
        if self.kind == "svd":
            return [reflections(w) for w in raw]
        return [rotations(w) for w in raw] if self.kind == "svd_mat_exp" else raw

    def matrices(self) -> Tensor:
        """The linear maps of all layers, ``[L, D, D]``."""
        u, *v = self.factors()
        return (u * self.log_scale.exp().unsqueeze(-2)) @ v[0].mT if v else u

    def penalty(self) -> Tensor:
        r""":math:`\operatorname{mean}_l \sum_{W \in \{U_l, V_l\}} \lVert I - W^\top W \rVert_F`, a scalar.

        A density gains :math:`\sum_l \ln |\det W_l|` that it has no right to by factors that are not orthogonal;
        a weight above :math:`L \sqrt D / 2` makes every such step a loss.
        """
        factors = torch.stack(self.factors())
        eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        return torch.linalg.matrix_norm(eye - factors.mT @ factors).mean(-1).sum()

    def _draw(self, num_layers: int, dim: int) -> nn.Parameter:
        """What the factors of all layers are made of, such that they start as all sorts of orthogonal matrices."""
        if self.kind == "svd":
            return nn.Parameter(torch.randn(num_layers, dim, dim))
        if self.kind == "svd_mat_exp":
            return nn.Parameter(torch.randn(num_layers, dim, dim) * (2 / math.sqrt(dim)))
        return nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(num_layers)]))

    def extra_repr(self) -> str:
        return f"kind={self.kind}"


def reflections(raw: Tensor) -> Tensor:
    r"""Orthogonal matrices :math:`-\prod_i (I - 2 v_i v_i^\top / \lVert v_i \rVert^2)` of any ``raw: [..., D, D]``.

    Above :math:`v_i` are zeros, then a one on the diagonal, below it the i-th column of `raw`. The one keeps the
    norm from vanishing. (PyTorch's parametrisation of the same name keeps signs in the diagonal of its weight and
    rounds them down: after any weight decay its matrices are singular.)
    """
    below = raw.tril(-1)
    return -torch.linalg.householder_product(below, 2 / (1 + below.square().sum(-2)))


def rotations(raw: Tensor) -> Tensor:
    """Orthogonal matrices, the exponentials of the skew-symmetric ones whose lower triangles are those of `raw`."""
    below = raw.tril(-1)
    return torch.linalg.matrix_exp(below - below.mT)
