"""A training step of a small network by Lightning and this project, against a bare loop in the same process.

    python benchmarks/training_step.py [--epochs 40]

The network, batches, scaling, loss and optimizer are the same; what differs is all that a run has beside them: its
loader, Lightning's loop, logging, the progress bar, checkpoints and the watch over the loss. An epoch of ours and one
of the loop take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ratios import ROOT, Ratio, main

ROWS, FEATURES, CLASSES, BATCH = 40_960, 48, 9, 512


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from hydra import compose, initialize_config_dir
    from torch import nn

    from uncertainty_est.building import build_data, build_method
    from uncertainty_est.callbacks import FiniteLoss
    from uncertainty_est.cli import log_to_console
    from uncertainty_est.launch import points_of
    from uncertainty_est.training import build_trainer, fit

    log_to_console()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        y = rng.integers(0, CLASSES, ROWS)
        x = (rng.normal(size=(CLASSES, FEATURES))[y] + rng.normal(size=(ROWS, FEATURES))).astype(np.float32)
        np.savez(Path(folder, "made.npz"), x_train=x, y_train=y, x_test=x[:CLASSES], y_test=y[:CLASSES])
        overrides = ["dataset=sensorless", "model=fc_ce_baseline", "trainer=cpu", "logger=tensorboard"]
        overrides += [f"fixed.data_root={folder}", "fixed.dataset=made", "fixed.transform.scaling=standard"]
        overrides += [f"fixed.batch_size={BATCH}", "fixed.test_ood_datasets=[]", "fixed.earlystop_config.patience=1000"]
        overrides += [f"fixed.trainer_config.max_epochs={arguments.epochs}", "fixed.trainer_config.max_steps=-1"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            (fixed,) = points_of(compose("config", overrides=overrides), ROOT / "configs" / "source")
        pl.seed_everything(1, verbose=False)
        data, method = build_data(fixed), build_method(fixed)
        data.setup("fit")
        split = data._id_split("train")

        layers: list[nn.Module] = []
        for width in (FEATURES, 100, 100, 100, 100):
            layers += [nn.Linear(width, 100), nn.LeakyReLU(0.01)]
        network = nn.Sequential(*layers, nn.Linear(100, CLASSES))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)

        def bare_epoch() -> None:
            for rows in torch.randperm(len(split)).split(BATCH):
                loss = nn.functional.cross_entropy(network(data.transform(split.x[rows])), split.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        class Turns(pl.Callback):
            """Times an epoch's steps, then an epoch of the bare loop."""

            def __init__(self) -> None:
                self.ours: list[float] = []
                self.bare: list[float] = []
                self.start = 0.0

            def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                self.start = time.perf_counter()

            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
                if trainer.is_last_batch:
                    self.ours.append(time.perf_counter() - self.start)

            def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                start = time.perf_counter()
                bare_epoch()
                self.bare.append(time.perf_counter() - start)

        trainer = build_trainer(fixed, method, Path(folder), FiniteLoss())
        turns = Turns()
        trainer.callbacks.append(turns)
        fit(trainer, method, data, Path(folder), None)
        steps = trainer.num_training_batches
    ratio = statistics.median(a / b for a, b in zip(turns.ours, turns.bare, strict=True))
    ours, bare = (1e3 * statistics.median(times) / steps for times in (turns.ours, turns.bare))
    what = f"training step, fc 5 x 100, {FEATURES} features, batch {BATCH}"
    return [Ratio(what, f"{ours:.2f} ms", f"a bare PyTorch loop, {bare:.2f} ms", ratio, 1.3)]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("epochs", 40), ("threads", 1)))
