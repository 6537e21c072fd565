"""What ``evaluate.py`` is asked for, and which runs that means; without torch, so that a wrong path is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uncertainty_est.errors import ConfigError
from uncertainty_est.run_folder import find_runs, run_folder


@dataclass(frozen=True)
class Request:
    """The command line of ``evaluate.py``, one attribute an option, and the folder of the data sets' YAML files."""

    output_folder: Path
    source_dir: Path
    checkpoint_dir: Path | None = None
    checkpoint: Sequence[Path] = ()
    name: str = "out"
    eval_classification: bool = False
    eval_ood_calibration: bool = False
    eval_scod: bool = False
    complexity: bool = False
    ensemble: bool = False
    ddu_json: bool = False
    shards: int | None = None
    shard: int | None = None
    max_eval: int | None = None
    config_entries: Sequence[str] = ()
    dataset: str | None = None
    ood_dataset: Sequence[str] = ()
    device: str = "auto"
    batch_size: int | None = None
    no_plots: bool = False
    temperature_scaling: bool = False
    scores: Sequence[str] = ()
    certify: bool = False
    certify_points: int = 200
    certify_radius: Sequence[float] = ()
    attack: bool = False
    attack_balls: Path | None = None
    attack_radius: float | None = None
    attack_seeds: str | None = None
    attack_points: int = 200
    attack_steps: int = 500
    attack_restarts: int = 50

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Name of each run, as it appears in the tables, to its folder; looked for once.

        Raises:
            ConfigError: there is none.
        """
        folders: dict[str, Path] = {}
        if self.checkpoint_dir is not None:
            for folder in find_runs(self.checkpoint_dir):
                relative = folder.relative_to(self.checkpoint_dir).as_posix()
                folders[folder.name if relative == "." else relative] = folder
        for path in self.checkpoint:
            folder = run_folder(path)
            folders[folder.name if folder.name not in folders else folder.as_posix()] = folder
        if not folders:
            raise ConfigError("--checkpoint-dir: give a folder of runs, or single runs by --checkpoint")
        return folders
