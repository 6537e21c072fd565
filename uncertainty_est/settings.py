"""All that can be said of a resolved `fixed` before anything is imported or built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from uncertainty_est.config import validate
from uncertainty_est.data_names import as_names
from uncertainty_est.errors import ConfigError

ON_DIVERGENCE = ("stop", "restart", "keep")


def check_settings(fixed: Mapping[str, Any]) -> None:
    """Keys, names, and values that :func:`~uncertainty_est.run.run` itself reads.

    Raises:
        ConfigError: a key, name or combination that cannot be run.
    """
    validate(fixed)
    check_ood_sets(fixed)
    on_divergence = fixed.get("on_divergence", ON_DIVERGENCE[0])
    if on_divergence not in ON_DIVERGENCE:
        raise ConfigError(f"fixed.on_divergence: must be one of {', '.join(ON_DIVERGENCE)}, got '{on_divergence}'")
    if fixed.get("resume") not in (None, "auto"):
        raise ConfigError(f"fixed.resume: must be auto or null, got '{fixed['resume']}'")
    for key in ("compile", "channels_last"):
        if not isinstance(fixed.get(key, False), bool):
            raise ConfigError(f"fixed.{key}: must be true or false, got '{fixed[key]}'")
    minutes = fixed.get("checkpoint_minutes")
    if minutes is not None and not (isinstance(minutes, int | float) and 0 <= minutes < math.inf):
        raise ConfigError(f"fixed.checkpoint_minutes: must be at least 0, or null, got {minutes}")


def check_ood_sets(fixed: Mapping[str, Any]) -> None:
    """An OOD set that a method is tuned or trained on is not one that it is tested on.

    Raises:
        ConfigError: two lists share a set, by name or by what it is built from, or a group is called like a set.
    """
    test = as_names(fixed.get("test_ood_datasets"))
    sources = fixed.get("sources") or {}
    for key in ("val_ood_datasets", "ood_dataset"):
        for name in as_names(fixed.get(key)):
            for test_name in test:
                if name == test_name or (name in sources and sources[name] == sources.get(test_name)):
                    raise ConfigError(
                        f"fixed.{key}: '{name}' is also in fixed.test_ood_datasets; a set that a method is tuned or"
                        f" trained on must not be one it is tested on, remove it from one of the two"
                    )
    for group in fixed.get("ood_groups") or {}:
        if group in test:
            raise ConfigError(f"fixed.ood_groups.{group}: a group must not be called like one of the OOD sets")
    if fixed["dataset"] in test:
        raise ConfigError(f"fixed.test_ood_datasets: '{fixed['dataset']}' is the in-distribution set; remove it")
