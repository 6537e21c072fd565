"""Active learning: ``python -m uncertainty_est.active_learning dataset=mnist model=img_ddu acquisition=gmm_density``.

Takes the groups and keys of ``train_local.py``, and those of ``configs/active_learning.yaml``. The same command goes on
where it was interrupted.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from uncertainty_est.cli import log_to_console, one_sentence_errors

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="active_learning")
def main(config: DictConfig) -> None:
    """Run what the composed configuration asks for, and draw the curves."""
    # Here and not above: `--help`, `--cfg job` and tab completion should not wait for torch.
    from uncertainty_est.active_learning.loop import learn_and_draw

    log_to_console()
    with one_sentence_errors():  # inside as well: Hydra adds a line of its own to what leaves this function
        learn_and_draw(config, CONFIGS / "source")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
