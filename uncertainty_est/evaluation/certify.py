"""What a method with closed-form bounds guarantees on points away from the data, and tables of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.evaluation import points
from uncertainty_est.evaluation.scoring import ScoredRun
from uncertainty_est.evaluation.tables import CONFIDENCE, RunInfo
from uncertainty_est.metrics.ood import FloatArray, ood_metrics
from uncertainty_est.models.base import Method

log = logging.getLogger(__name__)

# A ball is certified where no class gets more than FACTOR / C in it.
FACTOR = 1.1
_PERCENTILES = (5, 25, 75, 95)


@runtime_checkable
class Certified(Protocol):
    """A method that bounds its own confidence in balls of a metric, such as CCU."""

    @property
    def metric(self) -> Any:
        """With ``whiten`` and ``unwhiten``, see :class:`uncertainty_est.evaluation.attack.Metric`."""
        ...

    def confidence_bound(self, x: Tensor, radius: Tensor) -> Tensor:
        """Largest ``max p(y|x')`` within `radius` ``[B]`` of ``x: [B, *data_shape]``, ``[B]`` in [1/C, 1]."""
        ...

    def certified_radius(self, x: Tensor, factor: float = FACTOR) -> Tensor:
        """Radius ``[B]`` of balls in which the bound is at most ``factor / C``; 0 where there is none."""
        ...


@dataclass(frozen=True)
class CertifyOptions:
    """What is certified.

    Attributes:
        points: how many of uniform noise and of every OOD set.
        radii: at which the bound on the confidence is told, in units of the method's metric.
    """

    points: int = 200
    radii: Sequence[float] = (0.0, 1.0)


@dataclass(frozen=True)
class Certificate:
    """Of N points.

    Attributes:
        radius: certified for ``1.1 / C``, ``[N]``.
        bound: of the confidence in the ball of that radius, ``[N]``; at the point itself where the radius is 0.
        bounds: of the confidence by radius, each ``[N]``.
    """

    radius: FloatArray
    bound: FloatArray
    bounds: Mapping[float, FloatArray]

    def arrays(self) -> dict[str, FloatArray]:
        """All of it, by name."""
        return {"radius": self.radius, "bound": self.bound} | {f"bound:{r:g}": b for r, b in self.bounds.items()}


@torch.no_grad()
def certify(method: Certified, x: Tensor, radii: Sequence[float], max_rows: int = 512) -> Certificate:
    """Radii and bounds of ``x: [N, *data_shape]``, which may lie anywhere.

    Args:
        method: on the device of `x`.
        x: in the network's input space.
        radii: each at least 0.
        max_rows: at most so many points at once.
    """

    parts = x.split(max_rows)
    certified = [method.certified_radius(part, FACTOR) for part in parts]

    def bound(radii: list[Tensor]) -> FloatArray:
        bounds = [method.confidence_bound(part, radius) for part, radius in zip(parts, radii, strict=True)]
        return torch.cat(bounds).double().cpu().numpy()

    at = {r: bound([part.new_full((len(part),), r, dtype=torch.float64) for part in parts]) for r in radii}
    return Certificate(torch.cat(certified).double().cpu().numpy(), bound(certified), at)


def certify_run(
    info: RunInfo,
    method: Method,
    data: OODDataModule,
    scored: ScoredRun,
    options: CertifyOptions,
    device: torch.device | str = "cpu",
    max_batches: int | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """:func:`certificate_table` of uniform noise and of random inputs of every OOD set that was scored, and its arrays.

    Both empty, and that is told in the log, for a method without certificates. Keys of the arrays, each ``[N]``, are
    ``<data set>/radius``, ``<data set>/bound`` and ``<data set>/bound:<radius>``.

    Args:
        info: of the run.
        method: on `device`.
        data: of the run, set up.
        scored: the method's answers.
        options: see :class:`CertifyOptions`.
        device: where to compute.
        max_batches: inputs are taken from so many batches of an OOD set; ``None`` means all.
    """
    probs = scored.id_data.probs
    if not isinstance(method, Certified) or probs is None:
        log.info("%s: %s has no certificates", info.run, info.model_type)
        return pd.DataFrame(), {}
    sets = {points.UNIFORM: points.uniform_noise(data, options.points).to(device)}
    for name in scored.ood:
        batches = islice(data.ood_loader(name, "test", device=device), max_batches)
        sets[name] = points.some_inputs(batches, options.points)
    certificates = {name: certify(method, x, options.radii, data.eval_batch_size) for name, x in sets.items()}
    arrays = {f"{name}/{key}": values for name, found in certificates.items() for key, values in found.arrays().items()}
    return certificate_table(info, probs.max(axis=1), certificates), arrays


def certificate_table(
    info: RunInfo, id_confidence: FloatArray, certificates: Mapping[str, Certificate]
) -> pd.DataFrame:
    """One row for each set of points and number, in the columns of ``ood-<name>.csv`` without intervals.

    In percent: ``Certified confidence``, the mean of the bounds at the radius of the column ``Radius``; ``Guaranteed
    AUROC`` of the ID test set's confidences against these bounds, which no choice of points in the balls can push
    below; both also in the certified balls, without a ``Radius``; ``Certified fraction``, the share of points whose
    radius is positive. In units of the metric: mean, median and percentiles of ``Certified radius``.

    Args:
        info: of the run.
        id_confidence: ``max p(y|x)`` of the ID test set, ``[n]``.
        certificates: name of a set of points to what is certified of them.
    """
    rows = []
    for name, certificate in certificates.items():
        for metric, radius, value in _numbers(id_confidence, certificate):
            middle = {"OOD dataset": name, "Score": CONFIDENCE, "Metric": metric, "Value": value}
            ours = {"Radius": radius, "n_id": len(id_confidence), "n_ood": len(certificate.radius)}
            rows.append(info.row(middle, ours))
    return pd.DataFrame(rows)


def _numbers(id_confidence: FloatArray, certificate: Certificate) -> Iterator[tuple[str, float, float]]:
    """Metric, radius and value."""
    for radius, bounds in [*certificate.bounds.items(), (float("nan"), certificate.bound)]:
        yield "Certified confidence", radius, 100 * float(bounds.mean())
        yield "Guaranteed AUROC", radius, 100 * ood_metrics(id_confidence, bounds)["AUROC"]
    found = certificate.radius
    yield "Certified fraction", float("nan"), 100 * float((found > 0).mean())
    yield "Certified radius (mean)", float("nan"), float(found.mean())
    yield "Certified radius (median)", float("nan"), float(np.median(found))
    for percentile in _PERCENTILES:
        yield f"Certified radius (p{percentile})", float("nan"), float(np.percentile(found, percentile))
