"""Whether two resolved `fixed` describe one run, however much of it each spells out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uncertainty_est.config import SCHEMA, locate

# Runs that differ in these only are one run.
_FREE = ("resume", "checkpoint_minutes", "output_folder")
_FREE_OF_TRAINER = ("enable_progress_bar",)
# Keys whose values are paths, of `fixed` and of the nodes of data sets.
_PATHS = ("data_root", "path", "init_from")
_PATHS_OF_SOURCES = ("root", "path", "file", "folders")


def settings_of(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run the run it is: equal for two `fixed` of one run.

    Defaults are filled in at every node, as a configuration may have been saved before there was a key for them, and
    paths of data are absolute ones.

    Args:
        fixed: resolved, of any version of this package.

    Raises:
        ConfigError: a node that cannot be built here.
    """
    settings = _completed(dict(fixed) | {"_target_": SCHEMA})
    trainer, sources = settings.get("trainer_config"), settings.get("sources")
    if isinstance(trainer, dict):
        settings["trainer_config"] = {k: v for k, v in trainer.items() if k not in _FREE_OF_TRAINER}
    settings |= {key: _absolute(settings[key]) for key in _PATHS} | {"sources": _with_absolute_paths(sources)}
    return {key: value for key, value in settings.items() if key not in _FREE}


def _completed(node: Any, path: str = "") -> Any:
    """`node` in YAML's types, with the defaults of what its targets take."""
    if isinstance(node, Mapping):
        given = {str(key): _completed(value, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
        return (_defaults(node["_target_"], path) if "_target_" in node else {}) | given
    if isinstance(node, list | tuple):
        return [_completed(value, path) for value in node]
    return node


def _defaults(target: str, path: str) -> dict[str, Any]:
    """Those that YAML can write: others say nothing that could be compared."""
    defaults = {p.name: p.default for p in inspect.signature(locate(target, path)).parameters.values()}
    return {name: _completed(value) for name, value in defaults.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _with_absolute_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _absolute(v) if k in _PATHS_OF_SOURCES else _with_absolute_paths(v) for k, v in node.items()}
    return node


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return str(Path(value).expanduser().resolve()) if isinstance(value, str) else value
