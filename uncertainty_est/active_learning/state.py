"""What active learning keeps between two steps, and whose it is."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.files import write_atomically, write_text
from uncertainty_est.same_run import settings_of

STATE_FILE = "state.pt"
SETTINGS_FILE = "settings.yaml"

# Settings that change no step: with other values a run may go on.
_FREE = {"active_learning.max_labels", "active_learning.seeds"}


@dataclass
class State:
    """All that the next step depends on beside the settings: random numbers are drawn anew from seed and step.

    Attributes:
        labelled: positions in the pool that the next step trains on, in the order of acquisition.
        rows: one row of the table for each finished step.
        weights: where steps train on, those of the last one.
    """

    labelled: list[int]
    rows: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] | None = None

    def finished(self, max_labels: int) -> bool:
        """Nothing is left to train: the next step would have too many labels, or the pool is used up."""
        return len(self.labelled) > max_labels or bool(self.rows and len(self.labelled) == self.rows[-1]["Labels"])

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(folder / STATE_FILE, lambda path: torch.save(asdict(self), path))


def load_state(folder: Path) -> State | None:
    """The state after the last finished step, if there is one.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, TypeError) as error:
        raise DataError(f"{path} is damaged; remove {folder} to start anew") from error


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down whose folder this is, or see that it is the same run's.

    Args:
        folder: of one run.
        settings: nested plain values, ``fixed`` among them; those that change no step may differ.

    Raises:
        ConfigError: a run with other settings is in it.
        DataError: what is written there is unreadable.
    """
    path = folder / SETTINGS_FILE
    text = yaml.safe_dump(dict(settings), sort_keys=False)
    if path.is_file():
        try:
            theirs = _compared(yaml.safe_load(path.read_text()))
        except (UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read as settings; remove {folder} to start anew") from error
        ours = _compared(yaml.safe_load(text))
        for key in [*ours, *theirs]:
            if key not in _FREE and ours.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{folder} holds a run with {key}={theirs.get(key)}, but now it is {ours.get(key)}; choose"
                    f" another fixed.output_folder, or remove the folder to start anew"
                )
    write_text(path, text)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Key to value of what makes a run the run it is."""
    return dict(_flat({**settings, "fixed": settings_of(settings["fixed"])}))


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
