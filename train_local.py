"""Train on this machine: ``python train_local.py dataset=digits model=img_ddu [network=…] [trainer=…] [grid=…]``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from uncertainty_est.cli import log_to_console, one_sentence_errors

CONFIGS = Path(__file__).resolve().parent / "configs"


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    """Run what the composed configuration asks for: one run, or one for each point of the grid."""
    # Here and not above: `--help`, `--cfg job` and tab completion should not wait for torch.
    from uncertainty_est.launch import points_of, run_points

    log_to_console()
    with one_sentence_errors():  # inside as well: Hydra adds a line of its own to what leaves this function
        run_points(points_of(config, CONFIGS / "source"))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
