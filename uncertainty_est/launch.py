"""From a composed configuration to the runs it asks for: one, or one for each point of a grid."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from uncertainty_est.cluster.grid import check_keys, expand
from uncertainty_est.config import as_dict, describe, walk_targets
from uncertainty_est.data_names import as_names, grid_dataset_names, inline_sources
from uncertainty_est.errors import USER_ERRORS, ConfigError, first_line
from uncertainty_est.run_folder import CONFIG_FILE, read_config, run_folder
from uncertainty_est.settings import check_settings

log = logging.getLogger(__name__)

T = TypeVar("T")


def points_of(config: DictConfig, source_dir: Path, further_sources: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The resolved and validated ``fixed`` of every run that a composed configuration asks for.

    Every point is checked before the first one runs.

    Args:
        config: the composed configuration, with sections ``fixed`` and ``grid``.
        source_dir: folder of the data sets' YAML files.
        further_sources: names of data sets to describe in ``fixed.sources`` beside those that ``fixed`` names.

    Raises:
        ConfigError: with all problems of a point at once.
    """
    grid = as_dict(OmegaConf.to_container(config.grid, resolve=True)) if config.get("grid") else None
    overrides = expand(grid)
    check_keys(overrides, _dotted_keys(config.fixed))
    points = []
    for override in overrides:
        point = copy.deepcopy(config)
        OmegaConf.set_struct(point, False)
        for key, value in override.items():
            OmegaConf.update(point.fixed, key, value, merge=False)
        try:
            make_absolute(point.fixed)
            inline_sources(point.fixed, source_dir, [*grid_dataset_names(grid), *further_sources])
            fixed = as_dict(OmegaConf.to_container(point.fixed, resolve=True, throw_on_missing=True))
        except MissingMandatoryValue as error:
            tells = f"; python -m uncertainty_est.data.check --path {point.fixed.path} tells it" * bool(
                point.fixed.path
            )
            raise ConfigError(f"{error.full_key or 'fixed'}: a value must be given{tells}") from error
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key or 'fixed'}: {first_line(error)}") from error
        adopt_network(fixed)
        check_settings(fixed)
        points.append(fixed)
    return points


def make_absolute(fixed: DictConfig) -> None:
    """Paths of data as absolute ones, in place, so that a run finds its data from any folder."""
    for key in ("data_root", "path"):
        if fixed.get(key) is not None:
            fixed[key] = str(Path(str(fixed[key])).expanduser().resolve())


def adopt_network(fixed: dict[str, Any]) -> None:
    """Describe the network as the runs named by ``init_from`` do, in place: weights fit no other.

    What holds no weights stays as composed (dropout, and that an ensemble builds its members itself), and so does
    what the data demand, so that a run on other data is refused.

    Raises:
        ConfigError: no such run, or its network is not one of ours.
        DataError: its configuration is unreadable.
    """
    ours = fixed["model_config"].get("network")
    init_from = as_names(fixed.get("init_from"))
    if not init_from or not isinstance(ours, dict):
        return
    folder = run_folder(Path(init_from[0]))
    theirs = (read_config(folder).get("model_config") or {}).get("network")
    if not isinstance(theirs, dict):
        return
    for path, node in walk_targets(theirs, "model_config.network"):
        describe(node["_target_"], f"{folder / CONFIG_FILE}: {path}", own_only=True)
    kept = {key: ours[key] for key in ("_partial_", "dropout", "data_shape", "num_classes") if key in ours}
    fixed["model_config"]["network"] = {k: v for k, v in theirs.items() if k != "_partial_"} | kept
    log.info("network as in %s", folder)


def run_points(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """:func:`~uncertainty_est.run.run` for one point after another, see :func:`start_points`."""
    from uncertainty_est.run import run  # and with it torch and Lightning, once the points stand

    return start_points(points, run)


def start_points(points: list[dict[str, Any]], start: Callable[..., T]) -> list[T]:
    """Start one point after another; one that fails does not hinder those after it.

    Args:
        points: the resolved ``fixed`` of each.
        start: called with the keys of a point, as ``run`` is; its results are returned.

    Raises:
        Exception: the failure itself where there is one point; for a grid, a ConfigError that counts the failures,
            after all points have been tried and every failure logged.
    """
    if len(points) == 1:
        return [start(**points[0])]
    results, failures = [], []
    for number, point in enumerate(points, 1):
        log.info("grid point %d of %d", number, len(points))
        try:
            results.append(start(**point))
        except Exception as error:  # noqa: BLE001 (logged and counted; the points after it must still run)
            log.error(
                "grid point %d of %d failed: %s",
                number,
                len(points),
                error,
                exc_info=not isinstance(error, USER_ERRORS),
            )
            failures.append(number)
    if failures:
        raise ConfigError(f"grid: {len(failures)} of {len(points)} points failed (numbers {failures}), see the log")
    return results


def _dotted_keys(node: Any, path: str = "") -> set[str]:
    if not isinstance(node, DictConfig):
        return set()
    keys = set()
    for key in map(str, node):
        dotted = f"{path}.{key}" if path else key
        keys.add(dotted)
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            keys |= _dotted_keys(node[key], dotted)
    return keys
