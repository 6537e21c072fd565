"""Values of runs' configurations as columns of the tables: ``--config-entries``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.run_folder import read_config


def check_entries(folders: Sequence[Path], entries: Sequence[str]) -> None:
    """A config entry that no run has is a slip of the pen; one that some runs lack is an empty cell.

    Raises:
        ConfigError: an entry that no run has, or that names a whole section.
    """
    if not entries:
        return
    configs = [read_config(folder) for folder in folders]
    known = sorted({key for config in configs for key in _leaves(config)})
    for entry in entries:
        if entry not in known:
            raise ConfigError(f"--config-entries {entry}: no run has such a value{did_you_mean(entry, known)}")


def entries_of(fixed: Mapping[str, Any], entries: Sequence[str]) -> dict[str, Any]:
    """A run's values of dotted keys, by the last part of each; NaN where it has no such key."""
    return {entry.rsplit(".", 1)[-1]: _lookup(fixed, entry) for entry in entries}


def _leaves(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return [path]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]


def _lookup(config: Mapping[str, Any], entry: str) -> Any:
    node: Any = config
    for key in entry.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return float("nan")
        node = node[key]
    return node
