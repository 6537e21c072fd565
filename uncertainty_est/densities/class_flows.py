"""One normalising flow for each class, all of them evaluated in one call."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from uncertainty_est.densities.base import ClassDensities, check_positive


class ClassFlows(ClassDensities):
    r"""Base of C independent densities :math:`\ln p(z \mid c) = \ln \mathcal N(T_c(z); 0, I) + \ln |\det J_{T_c}(z)|`.

    The maps :math:`T_c` go from data to noise. Every operation runs over all classes at once: time hardly depends on
    their number as long as the device has room. One density is the case C = 1.

    Args:
        num_classes: C.
        dim: D.
        num_layers: number of maps that :math:`T_c` is composed of.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, num_classes: int, dim: int, num_layers: int) -> None:
        super().__init__(num_classes, dim)
        check_positive(num_layers=num_layers)
        self.num_layers = num_layers

    @abstractmethod
    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``[D, C, B]`` and log-determinants ``[C, B]`` of ``z: [D, 1, B]``.

        The batch is the innermost axis: what belongs to a feature or a class is then one number for a whole stretch
        of memory, and sums over the few features are sums of long vectors.
        """

    def log_prob(self, z: Tensor) -> Tensor:
        u, log_det = self.transform(z.mT.contiguous().unsqueeze(1))
        return standard_normal(u, log_det).mT


def standard_normal(u: Tensor, log_det: Tensor) -> Tensor:
    """Log-density of the standard normal of ``u: [D, ...]`` over its first axis, plus ``log_det: [...]``."""
    return log_det - 0.5 * u.square().sum(0) - 0.5 * len(u) * math.log(2 * math.pi)
