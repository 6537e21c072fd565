"""A grid's points are SEML's, with dotted keys and Python's own numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seml.experiment.config import generate_configs

from uncertainty_est.cluster.grid import check_keys, expand
from uncertainty_est.errors import ConfigError

GRIDS: list[dict[str, Any]] = [
    {"seed": {"type": "choice", "options": [3, 1, 2]}},
    {"model_config.lr": {"type": "loguniform", "min": 0.01, "max": 100, "num": 5}},
    {
        "seed": {"type": "range", "min": 0, "max": 4, "step": 2},
        "w": {"type": "uniform", "min": 0, "max": 1, "num": 3},
    },
    {
        "a": {"type": "choice", "options": [1, 2], "zip_id": "z"},
        "b": {"type": "choice", "options": ["x", "y"], "zip_id": "z"},
        "c": {"type": "choice", "options": [True, False]},
    },
]


@pytest.mark.parametrize("grid", GRIDS)
def test_points_are_semls_in_number_order_and_value(grid: dict[str, Any]) -> None:
    ours = expand(grid)
    theirs = generate_configs({"grid": grid})

    def unflat(point: dict[str, Any]) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in point.items():
            *parents, last = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return nested

    assert [unflat(point) for point in ours] == theirs


def test_numbers_are_pythons_own() -> None:
    for grid in GRIDS:
        for point in expand(grid):
            assert not any(isinstance(value, np.generic) for value in point.values())


def test_no_grid_is_one_point() -> None:
    assert expand(None) == [{}] == expand({})


def test_a_block_that_seml_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="grid: .*nonsense"):
        expand({"seed": {"type": "nonsense"}})


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"grid\.sed: there is no fixed\.sed to sweep; did you mean 'seed'\?"):
        check_keys([{"sed": 1}], {"seed", "model_config.lr"})
