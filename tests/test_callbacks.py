"""Pictures of what is learned, drawn into the logger while a method trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import compose_points
from uncertainty_est import checkpoints
from uncertainty_est.launch import run_points

STEPS = ["fixed.trainer_config.max_epochs=5", "fixed.trainer_config.check_val_every_n_epoch=1"]


def train(folder: Path, *overrides: str) -> Path:
    quiet = ["trainer=cpu", "fixed.trainer_config.enable_progress_bar=false", f"fixed.output_folder={folder}"]
    few = [
        "fixed.test_ood_datasets=[]",
        "+fixed.trainer_config.limit_train_batches=2",
        "fixed.trainer_config.log_every_n_steps=1",
    ]
    (result,) = run_points(compose_points(*STEPS, *quiet, *few, *overrides))
    return Path(result["run_dir"])


def images(run_dir: Path) -> dict[str, list[int]]:
    """Steps of the pictures in a run's log, by their names."""
    events = EventAccumulator(str(run_dir / "logs"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_density_and_samples_of_two_features(tmp_path: Path) -> None:
    """After validations 1, 2 and 4 and at the end, without any effect on the training."""
    common = ["dataset=gaussian2d", "model=fc_mcmc", "fixed.model_config.sampler.steps=2"]
    drawn = train(tmp_path, *common, "logger=tensorboard")
    assert images(drawn) == {"density": [2, 4, 8, 10], "samples": [2, 4, 8, 10]}
    plain = train(tmp_path, *common, "logger=none")
    ours, theirs = checkpoints.read_weights(drawn), checkpoints.read_weights(plain)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("model", "expected"), [("img_vera", {"samples": [2, 4, 8, 10]}), ("img_ce_baseline", {})])
def test_samples_of_images(model: str, expected: dict[str, list[int]], tmp_path: Path) -> None:
    assert images(train(tmp_path, "dataset=digits", f"model={model}", "logger=tensorboard")) == expected
