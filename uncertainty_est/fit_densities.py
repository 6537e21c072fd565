"""Only fit what a method fits before training: ``python -m uncertainty_est.fit_densities dataset=mnist model=img_ccu``.

Takes the command line of ``train_local.py``. A later run with the same data and settings, and the same
``fixed.output_folder``, finds the outcome and starts to train at once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from uncertainty_est.cli import log_to_console, one_sentence_errors

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

log = logging.getLogger("uncertainty_est.fit_densities")  # not __name__: a command's is __main__


def fit_densities(points: list[dict[str, Any]]) -> list[Path]:
    """Fit, or find, the densities of every composed point; returns the files they are in.

    Raises:
        ConfigError: a method that fits nothing before training, or a combination that cannot be run.
        DataError: a data set that cannot be used.
    """
    from uncertainty_est.building import build_data, build_method
    from uncertainty_est.errors import ConfigError
    from uncertainty_est.prefit import prefit
    from uncertainty_est.training import check_trainer

    files = []
    for fixed in points:
        method = build_method(fixed)
        if not method.prefitted:
            raise ConfigError(
                f"fixed.model_config: {type(method).__name__} fits nothing before training; train it right away,"
                f" with train_local.py"
            )
        data = build_data(fixed)
        data.prepare_data()
        data.setup("fit")
        path = prefit(method, data, Path(fixed["output_folder"]), check_trainer(fixed["trainer_config"]))
        if path is None:
            log.info("%s brings its densities along from fixed.init_from", type(method).__name__)
        else:
            files.append(path)
    return files


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def main(config: DictConfig) -> None:
    """Compose, as ``train_local.py`` does, and fit."""
    # Here and not above: `--help`, `--cfg job` and tab completion should not wait for torch.
    from uncertainty_est.launch import points_of

    log_to_console()
    with one_sentence_errors():  # inside as well: Hydra adds a line of its own to what leaves this function
        fit_densities(points_of(config, CONFIGS / "source"))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
