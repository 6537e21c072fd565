"""Save a run and load it again: a plain configuration beside plain weights, both checked before anything is built."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from uncertainty_est.config import build, validate
from uncertainty_est.errors import ConfigError, DataError, first_line
from uncertainty_est.files import write_atomically, write_npz, write_text
from uncertainty_est.models.base import Method
from uncertainty_est.run_folder import CHECKPOINT_FILE, CONFIG_FILE, SPLITS_FILE, read_config, run_folder

# Endings of keys that only training needs (a method may have several optimizers); leaving them out means that a foreign
# file can build no optimizer either.
_TRAINING_KEYS = ("optimizer", "scheduler")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        fixed: the resolved configuration that ``run`` was called with.
        method: the method in eval mode, weights and fitted state loaded, on the CPU.
    """

    path: Path
    fixed: dict[str, Any]
    method: Method


def save_config(run_dir: Path, fixed: Mapping[str, Any]) -> None:
    """Write the resolved `fixed` as plain YAML."""
    text = yaml.safe_dump(dict(fixed), sort_keys=False)
    write_text(run_dir / CONFIG_FILE, text)


def save_splits(run_dir: Path, splits: Mapping[str, np.ndarray]) -> None:
    """Write the indices of the train, validation and test samples."""
    write_npz(run_dir / SPLITS_FILE, splits)


def save_weights(run_dir: Path, method: Method) -> None:
    """Write weights and buffers of a method, with the name of its class."""
    save_state(run_dir / CHECKPOINT_FILE, method, method.state_dict())


def save_state(path: Path, method: Method, state: Mapping[str, torch.Tensor]) -> None:
    """Write `state`, all of a method's or a part, with the name of its class."""
    content = {"class": _class_name(method), "state_dict": dict(state)}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def read_weights(run_dir: Path, expected_class: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict of a run.

    Raises:
        DataError: the file is truncated, no checkpoint, or of another class than `expected_class`.
    """
    path = run_dir / CHECKPOINT_FILE
    saved_class, state = read_state(path, remedy="train the run again")
    if expected_class is not None and saved_class != expected_class:
        raise DataError(f"{path} holds a {saved_class}, but {CONFIG_FILE} beside it describes a {expected_class}")
    return state


def read_state(path: Path, remedy: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The name of the class and the state that :func:`save_state` wrote.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the message.

    Raises:
        DataError: the file is truncated or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["class"], content["state_dict"]
    except (
        OSError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        KeyError,
        TypeError,
    ) as error:
        raise DataError(
            f"{path} is truncated or no checkpoint of this project ({first_line(error, 160)}); {remedy}"
        ) from error


def load(path: Path) -> Run:
    """Rebuild a finished run from its folder alone.

    Args:
        path: the run's folder or its checkpoint file.

    Raises:
        ConfigError: the configuration names an unknown key or a class that is not ours.
        DataError: a file is damaged, or weights and configuration do not belong together.
    """
    run_dir = run_folder(path)
    fixed = read_config(run_dir)
    model_config = fixed.get("model_config")
    if not isinstance(model_config, dict) or "_target_" not in model_config:
        raise DataError(f"{run_dir / CONFIG_FILE}: model_config._target_ is missing; restore the file from the run")
    node = {key: value for key, value in model_config.items() if not str(key).endswith(_TRAINING_KEYS)}
    own = {key: value for key, value in fixed.items() if key in ("transform", "sources")} | {"model_config": node}
    try:
        _check_saved(fixed, own)
        method = build(node, own_only=True)
    except ConfigError as error:
        raise ConfigError(f"{run_dir / CONFIG_FILE}: {error}") from error
    if not isinstance(method, Method):
        raise ConfigError(f"{run_dir / CONFIG_FILE}: model_config._target_ '{node['_target_']}' is no method")
    state = read_weights(run_dir, _class_name(method))
    try:
        method.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise DataError(f"{run_dir / CHECKPOINT_FILE} does not fit {CONFIG_FILE} beside it ({detail})") from error
    method.eval()
    return Run(run_dir, fixed, method)


def _check_saved(fixed: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Keys of the whole file against those of ``run``; what loading builds against our own classes only."""
    trimmed = {key: own.get(key, value) for key, value in fixed.items()}
    for key in ("trainer_config", "logger", "checkpoint_config", "earlystop_config", "averaging_config"):
        if key in trimmed:
            trimmed[key] = None  # never built from a saved file
    validate(trimmed, own_only=True)


def _class_name(method: Method) -> str:
    return f"{type(method).__module__}.{type(method).__qualname__}"
