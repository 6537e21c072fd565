"""Train, test, acquire, and again: every step is whole or has not been."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from uncertainty_est.active_learning.curves import CURVE_FILE, draw, read_curves
from uncertainty_est.active_learning.pool import Pool, initial_rows, lowest
from uncertainty_est.active_learning.settings import Acquisition, Protocol, read
from uncertainty_est.active_learning.state import State, claim, load_state
from uncertainty_est.building import build_method
from uncertainty_est.config import as_dict, build
from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluation.scoring import score_loader
from uncertainty_est.files import make_folder, write_csv
from uncertainty_est.launch import points_of, start_points
from uncertainty_est.metrics.calibration import classification_metrics
from uncertainty_est.models.base import Method
from uncertainty_est.settings import check_settings
from uncertainty_est.training import check_trainer, fit_posthoc, train

log = logging.getLogger(__name__)

# What a stream of random numbers is for, beside a run's seed and the number of the step.
_INITIAL, _TRAINING, _ACQUISITION = range(3)


def learn_all(config: DictConfig, source_dir: Path) -> list[Path]:
    """Active learning for every seed, or point of the grid, of a composed configuration.

    Args:
        config: with the sections ``fixed``, ``grid``, ``acquisition`` and ``active_learning``.
        source_dir: folder of the data sets' YAML files.

    Returns:
        The tables, one for each run.

    Raises:
        ConfigError: with all problems of a point at once, or once all points have been tried.
        DataError: of a single point, a data set that cannot be used.
        TrainingError: of a single point, the loss diverged.
    """
    sections = as_dict(OmegaConf.to_container(config, resolve=True))
    protocol = read(Protocol, sections["active_learning"], "active_learning")
    acquisition = read(Acquisition, sections["acquisition"], "acquisition")
    if protocol.seeds:
        if "seed" in (sections["grid"] or {}):
            raise ConfigError("active_learning.seeds: grid has seeds, too; give one of the two")
        seeds = {"type": "choice", "options": list(protocol.seeds)}
        OmegaConf.update(config, "grid", {"seed": seeds}, force_add=True)
    further = [protocol.pool_extra] if protocol.pool_extra else []
    points = points_of(config, source_dir, further)
    return start_points(points, lambda **fixed: learn(fixed, protocol, acquisition))


def learn_and_draw(config: DictConfig, source_dir: Path) -> Path:
    """:func:`learn_all`, then one figure of all runs on the same data below the output folder.

    Returns:
        The figure, ``<output_folder>/curves.png``.
    """
    done = read_curves(learn_all(config, source_dir))
    folder = Path(config.fixed.output_folder)
    rows = read_curves([folder])
    path, *_ = draw(rows[rows["Dataset"].isin(done["Dataset"])], folder / "curves.png")
    log.info("curves: %s", path)
    return path


def learn(fixed: Mapping[str, Any], protocol: Protocol, acquisition: Acquisition) -> Path:
    """One run of active learning, from wherever its folder's state is.

    Args:
        fixed: the resolved configuration of a run.
        protocol: how labels are acquired.
        acquisition: which.

    Returns:
        The table ``<output_folder>/<model>-<dataset>-<acquisition>-seed<seed>/curve.csv``.

    Raises:
        ConfigError: a combination that cannot be run, or the folder is another run's.
        DataError: a data set that cannot be used, or the folder's files are damaged.
        TrainingError: the loss diverged.
    """
    check_settings(fixed)
    check_trainer(fixed["trainer_config"])
    if build(fixed["trainer_config"], logger=False, enable_checkpointing=False).world_size > 1:
        raise ConfigError(
            "fixed.trainer_config: active learning trains in one process; choose trainer=cpu or trainer=gpu"
        )
    pool = Pool(fixed, protocol.pool_extra)
    if protocol.max_labels > len(pool):
        raise ConfigError(
            f"active_learning.max_labels: {protocol.max_labels} is more than the {len(pool)} items of the training"
            f" split; lower it"
        )
    name = f"{fixed['model']}-{fixed['dataset']}-{acquisition.name}-seed{fixed['seed']}"
    folder = Path(fixed["output_folder"]) / name
    state = load_state(folder)
    if state is None:
        rng = _generator(fixed, 0, _INITIAL)
        own = np.flatnonzero(~pool.extra)
        rows = initial_rows(pool.labels[own], fixed["num_classes"], protocol.initial_labels, rng)
        state = State(own[rows].tolist())
        check_method(fixed, pool, state, acquisition)
    else:
        log.info("%s: going on after %d finished steps", folder, len(state.rows))
    settings = {"fixed": dict(fixed), "acquisition": asdict(acquisition), "active_learning": asdict(protocol)}
    claim(make_folder(folder, "fixed.output_folder"), settings | {"pool": pool.digest})
    while True:
        write_table(state, folder)
        if state.finished(protocol.max_labels):
            return folder / CURVE_FILE
        state = step(fixed, protocol, acquisition, pool, state, folder)
        state.save(folder)
        row = state.rows[-1]
        log.info("%s: %d labels, accuracy %.2f", folder.name, row["Labels"], row["Accuracy"])


def check_method(fixed: Mapping[str, Any], pool: Pool, state: State, acquisition: Acquisition) -> None:
    """Ask an untrained method for its scores, so that a wrong one is refused before anything is trained.

    What is fitted before training, or chosen on outliers, may take long: such a method is asked after the first step.

    Raises:
        ConfigError: it has not the scores that the acquisition needs.
    """
    pl.seed_everything(fixed["seed"], workers=True, verbose=False)
    method = build_method(fixed)
    if method.prefitted or method.needs_val_ood:
        return
    pool.data.train_on(torch.tensor(state.labelled))
    if method.posthoc_split is not None:
        method.fit_posthoc(pool.data.plain_loader(method.posthoc_split))
    acquisition.check(score_loader(method, pool.data.plain_loader("train"), max_batches=1), fixed["model"])


def step(
    fixed: Mapping[str, Any], protocol: Protocol, acquisition: Acquisition, pool: Pool, state: State, folder: Path
) -> State:
    """Train on what is labelled, test, and choose what is labelled next; a function of its arguments alone.

    Args:
        fixed: the resolved configuration of a run.
        protocol: how labels are acquired.
        acquisition: which.
        pool: its data are told what to train on.
        state: after the last step; stays as it is.
        folder: of the run; what a logger writes goes to ``step<number>/`` in it.
    """
    start = time.perf_counter()
    number, data = len(state.rows), pool.data
    # Seeds of its own: a step does not depend on whether those before it ran in the same process.
    data.seed = int(_generator(fixed, number, _TRAINING).integers(2**32))
    pl.seed_everything(data.seed, workers=True, verbose=False)
    data.train_on(torch.tensor(state.labelled), protocol.epoch_items)
    method = build_method(fixed)
    if state.weights is not None:
        method.load_state_dict(state.weights)
    own_folder = folder / f"step{number}"
    if own_folder.exists():  # of a step that was killed
        shutil.rmtree(own_folder)
    trainer, method, _ = train(fixed, method, data, own_folder)
    fit_posthoc(trainer, method, data)
    if own_folder.exists() and not fixed["logger"]:
        shutil.rmtree(own_folder)  # only Lightning's checkpoints are in it

    device = trainer.strategy.root_device
    method.to(device)
    tested = score_loader(method, data.id_test_loader(device=device))
    probs = acquisition.check(tested, fixed["model"])
    rest = np.setdiff1d(np.arange(len(pool)), state.labelled)
    chosen = acquire(method, acquisition, pool, rest, protocol.labels_per_step, _generator(fixed, number, _ACQUISITION))

    metrics = classification_metrics(probs, tested.labels)
    acquired = state.labelled[protocol.initial_labels :]
    row = {
        "Seed": fixed["seed"],
        "Step": number,
        "Labels": len(state.labelled),
        "Acquisition": acquisition.name,
        "Model": fixed["model"],
        "Dataset": fixed["dataset"] + (f" + {protocol.pool_extra}" if protocol.pool_extra else ""),
        "Accuracy": 100 * metrics["Accuracy"],
        "NLL": metrics["NLL"],
        "Ambiguous share": float(100 * pool.extra[acquired].mean()) if protocol.pool_extra and acquired else None,
        "Minutes": (time.perf_counter() - start) / 60,
    }
    weights = {key: value.cpu() for key, value in method.state_dict().items()} if protocol.warm else None
    return State([*state.labelled, *chosen.tolist()], [*state.rows, row], weights)


def acquire(
    method: Method, acquisition: Acquisition, pool: Pool, rest: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Positions of the next k labels among ``rest: [N]``, fewer where `rest` has fewer.

    Args:
        method: fitted, on the device on which it scores.
        acquisition: which.
        pool: where the items are.
        rest: positions that are not labelled.
        k: how many.
        rng: breaks ties; of equal scores all are ties.
    """
    if acquisition.score is None or not len(rest):
        return rest[lowest(np.zeros(len(rest)), k, rng)]
    loader = pool.data.training_items_loader(torch.from_numpy(rest), device=method.device)
    scores = score_loader(method, loader).scores[acquisition.score]
    return rest[lowest(scores if acquisition.lowest_first else -scores, k, rng)]


def write_table(state: State, folder: Path) -> None:
    """Write the rows of all finished steps, tidy."""
    if state.rows:
        write_csv(folder / CURVE_FILE, pd.DataFrame(state.rows))


def _generator(fixed: Mapping[str, Any], number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([fixed["seed"], number, stream])
