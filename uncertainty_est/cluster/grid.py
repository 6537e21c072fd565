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


def sections(points: list[dict[str, Any]]) -> dict[str, Any]:
    """SEML's ``fixed`` and ``grid`` sections that expand to exactly these points, in this order.

    What all points share is fixed. What differs is one zipped block: values that follow from a swept one (a name that
    has the seed in it) go along with it.

    Args:
        points: resolved ``fixed`` of every run, at least one.
    """
    varying: dict[str, Any] = {}
    shared = _split([dict(point) for point in points], "", varying)
    blocks = {key: {"type": "choice", "options": options, "zip_id": "point"} for key, options in varying.items()}
    return {"fixed": shared} | ({"grid": blocks} if blocks else {})


def _split(nodes: list[dict[str, Any]], path: str, varying: dict[str, Any]) -> dict[str, Any]:
    """What `nodes` share; the rest goes into `varying`, from dotted key to one value for each node."""
    shared = {}
    for key, first in nodes[0].items():
        values = [node[key] for node in nodes]
        dotted = f"{path}.{key}" if path else key
        if len({repr(value) for value in values}) == 1:  # not by ==, to which 1 and True are one
            shared[key] = first
        elif all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
            if inner := _split(values, dotted, varying):
                shared[key] = inner
        else:
            varying[dotted] = values
    return shared


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
