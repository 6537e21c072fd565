"""A grid's points, expanded by SEML itself, so that a local grid and one on the cluster are the same runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from seml.experiment.config import generate_configs
from seml.utils import flatten
from seml.utils.errors import ConfigError as SemlConfigError

from uncertainty_est.errors import ConfigError, did_you_mean


def expand(grid: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every point of a SEML ``grid`` section as a flat mapping from dotted key below ``fixed`` to value.

    Args:
        grid: parameter blocks (``type: choice | range | uniform | loguniform``); ``None`` or empty is one point.

    Raises:
        ConfigError: SEML refuses the section.
    """
    if not grid:
        return [{}]
    try:
        # SEML takes `fixed` apart as well; an empty grid point needs something to stand in.
        points = generate_configs({"grid": dict(grid)})
    except (SemlConfigError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"grid: {error}") from error
    return [{key: _plain(value) for key, value in flatten(point).items()} for point in points]


def check_keys(points: list[dict[str, Any]], known: set[str]) -> None:
    """Every swept key exists.

    Args:
        points: from :func:`expand`.
        known: dotted keys of ``fixed``, sections included.

    Raises:
        ConfigError: a key that ``fixed`` does not have, with the nearest that it has.
    """
    for key in points[0]:
        if key not in known:
            raise ConfigError(f"grid.{key}: there is no fixed.{key} to sweep{did_you_mean(key, known)}")


def _plain(value: Any) -> Any:
    """A NumPy number (``range``, ``uniform`` and ``loguniform`` yield them) as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
