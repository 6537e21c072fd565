"""What a run's folder holds, as far as it can be told without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from uncertainty_est.errors import ConfigError, DataError, first_line

CONFIG_FILE = "config.yaml"
CHECKPOINT_FILE = "checkpoint.pt"
SPLITS_FILE = "splits.npz"
RESULTS_FILE = "results.json"


def find_runs(root: Path) -> list[Path]:
    """Folders of all finished runs at or below `root`, sorted.

    Raises:
        ConfigError: the folder does not exist or holds no run.
    """
    if not root.is_dir():
        raise ConfigError(f"--checkpoint-dir: there is no folder '{root}'")
    runs = sorted(path.parent for path in root.rglob(CHECKPOINT_FILE))
    if not runs:
        raise ConfigError(
            f"--checkpoint-dir: no {CHECKPOINT_FILE} below '{root}'; give the folder that"
            f" train_local.py wrote to (fixed.output_folder)"
        )
    return runs


def run_folder(path: Path) -> Path:
    """The run folder that a user's path means: the folder itself or its checkpoint file.

    Raises:
        ConfigError: there is no finished run.
    """
    folder = path.parent if path.name == CHECKPOINT_FILE else path
    for name in (CONFIG_FILE, CHECKPOINT_FILE):
        if not (folder / name).is_file():
            raise ConfigError(f"'{path}' is no finished run: {folder / name} does not exist")
    return folder


def read_config(run_dir: Path) -> dict[str, Any]:
    """The saved `fixed` of a run, unchecked.

    Raises:
        DataError: the file is unreadable.
    """
    path = run_dir / CONFIG_FILE
    try:
        # Plain YAML: an interpolation in a foreign file must not read this machine's environment.
        fixed = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({first_line(error)}); restore it from the run") from error
    if not isinstance(fixed, dict):
        raise DataError(f"{path} holds no configuration; restore it from the run")
    return fixed
