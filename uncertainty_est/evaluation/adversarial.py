"""The protocol of the attack: one set of balls around noise, in which every run's confidence is maximised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uncertainty_est.checkpoints import Run
from uncertainty_est.data.loader import Transform
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.densities.pca_metric import PCAMetric
from uncertainty_est.errors import USER_ERRORS, ConfigError
from uncertainty_est.evaluation import points
from uncertainty_est.evaluation.attack import Metric, Region, attack, log_confidence_of
from uncertainty_est.evaluation.certify import FACTOR, Certified
from uncertainty_est.evaluation.scoring import Scored, ScoredRun
from uncertainty_est.evaluation.tables import CONFIDENCE, RunInfo, confidences
from uncertainty_est.metrics.ood import FloatArray, ood_metrics
from uncertainty_est.run_folder import read_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackOptions:
    """What is attacked, and how hard.

    Attributes:
        balls: folder of the certified run whose balls are used; ``None`` takes the first such run that is evaluated.
        radius: of Euclidean balls in the network's input space instead, at least 0.
        seeds: OOD set of the balls' centers; ``None`` means uniform noise.
        points: how many balls.
        steps: of each restart.
        restarts: at least 1.
        step_size: of the first step.

    References:
        Meinke and Hein, arXiv:1909.12180, section 5, whose numbers the defaults are.
    """

    balls: Path | None = None
    radius: float | None = None
    seeds: str | None = None
    points: int = 200
    steps: int = 500
    restarts: int = 50
    step_size: float = 3.0


@dataclass(frozen=True)
class Balls:
    """Where the runs of one data set are attacked.

    Attributes:
        origin: name of the run that the balls come from; ``Euclidean`` where it is none.
        folder: of that run; ``None`` for Euclidean ones.
        name: of the seeds.
        region: the balls and the data's box, in the network's input space of one run.
        transform: from raw items to that space; ``None`` for data that come in it.
        corners: least and greatest raw item, ``[2, *data_shape]``.
        bound: of that run's confidence in each ball, ``[N]``; ``None`` for Euclidean ones.
    """

    origin: str
    folder: Path | None
    name: str
    region: Region
    transform: Transform | None
    corners: Tensor
    bound: FloatArray | None

    def into(self, data: OODDataModule) -> Callable[[Tensor], Tensor]:
        """From the balls' space to the network's input space of another run on the same data, differentiable.

        Args:
            data: of the other run, set up.
        """
        own = self.transform
        # A transform works on each feature by itself: two that agree at both ends of all ranges are the same.
        if own is None or torch.equal(own(self.corners), data.transform(self.corners)):
            return lambda x: x
        return lambda x: data.transform(own.invert(x))


class Arena:
    """The balls in which the runs of each data set are attacked, made when they are first asked for.

    Args:
        folders: name of a run to its folder, of all that are evaluated.
        load: a run from its folder, and its data.
        options: see :class:`AttackOptions`.
        device: where to attack.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        load: Callable[[Path], tuple[Run, OODDataModule]],
        options: AttackOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = options
        self.device = device
        self._folders = folders
        if options.balls is not None:
            self._folders = {options.balls.name: options.balls}
        self._load = load
        self._balls: dict[tuple[Any, ...], Balls | None] = {}

    def attack_run(
        self, info: RunInfo, run: Run, data: OODDataModule, scored: ScoredRun
    ) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
        """:func:`attack_table` of a run, and its arrays: seeds and attacked points, their confidences, and the radii.

        Both empty, and that is told in the log, for a method without classes. Points ``[N, *data_shape]`` are in the
        input space of the run that the balls come from.

        Args:
            info: of the run.
            run: its method is moved to the device.
            data: of the run, set up.
            scored: its answers.

        Raises:
            ConfigError: there are no balls on these data, or the method's probabilities pass no gradient to the input.
        """
        if scored.id_data.probs is None:
            log.info("%s: %s has no class probabilities to attack", info.run, info.model_type)
            return pd.DataFrame(), {}
        balls = self.balls(run.fixed)
        region, into, max_rows = balls.region, balls.into(data), data.eval_batch_size
        method = run.method.to(self.device)
        log.info("attacking %s in %d balls of %s", info.run, len(region), balls.origin)
        found = attack(
            log_confidence_of(method, into),
            region,
            steps=self.options.steps,
            restarts=self.options.restarts,
            step_size=self.options.step_size,
            max_rows=max_rows,
        )

        def confidence(x: Tensor) -> FloatArray:
            probs = [method.classify(into(part)) for part in x.split(max_rows)]
            return torch.cat([p for p in probs if p is not None]).double().amax(-1).cpu().numpy()

        own = balls.folder is not None and balls.folder.resolve() == run.path.resolve()
        before, after = confidence(region.seeds), confidence(found.x)
        arrays = {
            "seeds": region.seeds.cpu().numpy(),
            "radius": region.radius.cpu().numpy(),
            "attacked": found.x.cpu().numpy(),
            "confidence:seeds": before,
            "confidence:attacked": after,
        }
        return attack_table(info, scored.id_data, balls, before, after, balls.bound if own else None), arrays

    def balls(self, fixed: Mapping[str, Any]) -> Balls:
        """The balls of a run's data set: of the run that the options name, or else of the first that can give some.

        Raises:
            ConfigError: there are none on these data.
        """
        key = _data_key(fixed)
        if key not in self._balls:
            self._balls[key] = self._first(key)
        balls = self._balls[key]
        if balls is None:
            named = self.options.balls
            found = f"'{named}' gives none" if named else "no run that is evaluated here gives any"
            raise ConfigError(
                f"--attack needs certified balls, but {found} on '{fixed['dataset']}'; evaluate a run of CCU on it as"
                " well (model=img_ccu or fc_ccu), name one by --attack-balls, or give --attack-radius"
            )
        return balls

    def _first(self, key: tuple[Any, ...]) -> Balls | None:
        for name, folder in self._folders.items():
            try:
                if _data_key(read_config(folder)) != key:
                    continue
                run, data = self._load(folder)
                data.setup("test")
            except USER_ERRORS:
                if folder == self.options.balls:
                    raise
                continue  # listed as a failure when its own turn comes
            if self.options.radius is not None or isinstance(run.method, Certified):
                return make_balls(name, run, data, self.options, self.device)
        return None


@torch.no_grad()
def make_balls(
    name: str, run: Run, data: OODDataModule, options: AttackOptions, device: torch.device | str = "cpu"
) -> Balls:
    """Balls around the seeds: certified ones of a run's method, or Euclidean ones where the options give a radius.

    The box is the data's (:func:`~uncertainty_est.evaluation.points.box`), widened for a seed that lies outside.

    Args:
        name: of the run.
        run: of a :class:`Certified` method; for Euclidean balls, of any.
        data: of the run, set up, with the OOD set of the seeds.
        options: see :class:`AttackOptions`.
        device: where to attack.

    Raises:
        DataError: the set of the seeds cannot be read.
    """
    if options.seeds is None:
        seeds = points.uniform_noise(data, options.points).to(device)
    else:
        seeds = points.some_inputs(data.ood_loader(options.seeds, "test", device=device), options.points)
    low, high = (corner.to(device) for corner in points.box(data))
    limits = torch.minimum(low, seeds), torch.maximum(high, seeds)
    if options.radius is not None:
        origin, folder, bound = "Euclidean", None, None
        radius = torch.full((len(seeds),), options.radius, dtype=torch.float64, device=device)
        metric: Metric = PCAMetric(seeds[0].numel(), "none")
    else:
        origin, folder, method = name, run.path, run.method.to(device)
        assert isinstance(method, Certified)
        radius, metric = method.certified_radius(seeds, FACTOR).double(), method.metric
        bound = method.confidence_bound(seeds, radius).double().cpu().numpy()
    return Balls(
        origin,
        folder,
        options.seeds or points.UNIFORM,
        Region(seeds, radius, metric, *limits),
        data.transform if data.id_source.space == "raw" else None,
        points.raw_box(data),
        bound,
    )


def _data_key(fixed: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for runs whose raw data can be exchanged."""
    return fixed.get("dataset"), tuple(fixed.get("data_shape") or ())


def attack_table(
    info: RunInfo,
    id_data: Scored,
    balls: Balls,
    before: FloatArray,
    after: FloatArray,
    bound: FloatArray | None = None,
) -> pd.DataFrame:
    """One row a number, in the columns of ``ood-<name>.csv`` without intervals.

    In percent, of the seeds and of the attacked points, which have a name of their own among the OOD sets: ``MMC``,
    ``Confident share``, ``Median confidence``, ``Success rate`` (confidence at least the ID test set's median) and
    ``AUROC`` of the ID test set against them. Once: ``Test error``, ``Balls with a radius`` (the share of seeds around
    which there was room to attack) and, with bounds, ``Largest excess over the bound``, of the attacked confidences,
    which a valid certificate keeps from being positive. ``Balls`` names the run they come from.

    Args:
        info: of the run.
        id_data: its answers on the ID test set, with classes.
        balls: that were attacked.
        before: confidences at the seeds, ``[N]``.
        after: at the attacked points, ``[N]``.
        bound: of the run's own confidence in the balls, ``[N]``.
    """
    probs = id_data.probs
    assert probs is not None
    known, wrong = probs.max(axis=1), probs.argmax(axis=1) != id_data.labels
    attacked = f"{balls.name}, attacked"

    def numbers() -> Iterator[tuple[str, str, Any]]:
        for name, confidence in ((balls.name, before), (attacked, after)):
            for metric, values in confidences(confidence[:, None]).items():
                yield name, metric, values.mean()
            yield name, "Median confidence", 100 * np.median(confidence)
            yield name, "Success rate", 100 * (confidence >= np.median(known)).mean()
            yield name, "AUROC", 100 * ood_metrics(known, confidence)["AUROC"]
        yield attacked, "Balls with a radius", 100 * (balls.region.radius > 0).double().mean()
        if bound is not None:
            # Probabilities are float32: rounded alike, a bound that holds still does.
            yield attacked, "Largest excess over the bound", 100 * (after - bound.astype(np.float32)).max()
        yield "", "Test error", 100 * wrong.mean()

    ours = {"Balls": balls.origin, "n_id": len(known), "n_ood": len(before)}
    return pd.DataFrame(
        info.row({"OOD dataset": name, "Score": CONFIDENCE, "Metric": metric, "Value": float(value)}, ours)
        for name, metric, value in numbers()
    )
