"""Densities that energy-based models learn in the plane beside the true ones: a figure, and distances in a table.

    python benchmarks/energy_plane.py [--seeds 3] [--jobs 2] --output docs/energy_plane.md

The figure, of the first seed, goes into ``images/energy_plane.png`` beside the output. Finished runs below ``--runs``
are not trained again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from protocol import Row, Table, arguments_of, mean_and_error, results_of_tables, with_error, write
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from uncertainty_est import checkpoints
from uncertainty_est.building import build_data

STEPS = 4000
SIDE = 200  # grid points along each axis
MARGIN = 1.0  # around the test points, in the data's units

# Langevin chains at temperature 1, std^2 = 2 lr, with steps much smaller than what is to be seen.
LANGEVIN = [
    "fixed.model_config.sampler.steps=20",
    "fixed.model_config.sampler.lr=2e-3",
    "fixed.model_config.sampler.std=6.3246e-2",
    "fixed.model_config.buffer.low=-2",
    "fixed.model_config.buffer.high=2",
    # Chains do not cross from one cluster to the next: new ones, and F held near 0, keep the weights from drifting.
    "fixed.model_config.buffer.reinit_freq=0.1",
    "fixed.model_config.p_control=0.03",
]
# An entropy that weighs as much as the density makes the generator's density that of the model.
VERA = [
    "fixed.model_config.entropy_weight=1.0",
    "fixed.model_config.p_control=0.001",
    "fixed.model_config.n_control=0.001",
    "fixed.model_config.optimizer.lr=1e-3",
    "fixed.model_config.generator_optimizer.lr=2e-3",
    "fixed.model_config.posterior_optimizer.lr=2e-3",
]
ROWS = [
    Row("JEM's density (mcmc)", ["model=fc_mcmc", *LANGEVIN]),
    Row("VERA", ["model=fc_vera", *VERA]),
    Row("SSM", ["model=fc_ssm", "fixed.model_config.input_noise=0.05"]),
    Row("EPN-M", ["model=fc_mcmc_priornet", *LANGEVIN]),
    Row("EPN-V", ["model=fc_vera_priornet", *VERA]),
]
COMMON = [
    "fixed.trainer_config.max_epochs=-1",
    f"fixed.trainer_config.max_steps={STEPS}",
    "fixed.trainer_config.check_val_every_n_epoch=20",
    "fixed.model_config.warmup_steps=100",
    "~fixed.model_config.scheduler",
    "fixed.test_ood_datasets=[]",
]
TABLES = [
    Table("gaussian2d", "Three Gaussians", "gaussian2d", "", [], ROWS, common=COMMON),
    Table("two_moons", "Two moons", "two_moons", "", [], ROWS, common=COMMON),
]


NOTES = """Score matching sees how the density falls within a cluster, and next to nothing of how much of the data is in
which of two clusters that are far apart. The others were compared at a constant learning rate, at which the weights of
clusters go up and down.
"""


class Grid(NamedTuple):
    """Points ``[SIDE^2, 2]`` in the data's units, the axes they are a product of, and log of the mass ``[SIDE^2]``."""

    points: Tensor
    axes: list[Tensor]
    true: Tensor


def truth(name: str) -> MixtureSameFamily:
    """The density that the data set was drawn from."""
    if name == "gaussian2d":
        angles = torch.tensor([90.0, -30.0, 210.0]).deg2rad()
        means, scale = 2 * torch.stack([angles.cos(), angles.sin()], -1), 0.2
    else:
        # Points at equal steps along each half circle, with noise of 0.1, then 2 x + (-1, -0.2).
        angles = torch.linspace(0, torch.pi, 2000)
        outer = torch.stack([angles.cos(), angles.sin()], -1)
        inner = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], -1)
        means, scale = 2 * torch.cat([outer, inner]) + torch.tensor([-1.0, -0.2]), 0.2
    return MixtureSameFamily(Categorical(torch.ones(len(means))), Independent(Normal(means, scale), 1))


def normalised(log_density: Tensor) -> Tensor:
    """Log of the mass in each cell of the grid, whose sum is 1."""
    return log_density.double().log_softmax(0)


def make_grid(name: str, x: Tensor) -> Grid:
    low, high = x.amin(0) - MARGIN, x.amax(0) + MARGIN
    axes = [torch.linspace(float(a), float(b), SIDE) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes)
    true = torch.cat([truth(name).log_prob(part) for part in points.split(4000)])
    return Grid(points, axes, normalised(true))


def learned(run_dir: str) -> tuple[Grid, Tensor]:
    """A run's log-mass on the grid around its data."""
    loaded = checkpoints.load(Path(run_dir))
    data = build_data(loaded.fixed)
    data.setup("test")
    grid = make_grid(loaded.fixed["dataset"], data.id_source.split("test").x)
    return grid, normalised(loaded.method.predict(data.transform(grid.points)).scores["p(x)"])


def distances(true: Tensor, ours: Tensor) -> tuple[float, float]:
    """Total variation in percent, and KL divergence of `ours` from the truth in nats."""
    return 50 * float((true.exp() - ours.exp()).abs().sum()), float((true.exp() * (true - ours)).sum())


def draw(panels: dict[str, list[tuple[str, Grid, Tensor]]]) -> Figure:
    """One row a data set: the truth, then every method."""
    columns = 1 + len(ROWS)
    figure = Figure(figsize=(1.75 * columns, 1.95 * len(panels)), layout="constrained")
    for axes, methods in zip(figure.subplots(len(panels), columns), panels.values(), strict=True):
        _, grid, _ = methods[0]
        top = float(grid.true.exp().max())
        for axis, (label, _, mass) in zip(axes, [("truth", grid, grid.true), *methods], strict=True):
            image = mass.exp().reshape(SIDE, SIDE).T.numpy()
            axis.pcolormesh(*(a.numpy() for a in grid.axes), image, vmin=0, vmax=top, cmap="magma", rasterized=True)
            axis.set_title(label, fontsize=9)
            axis.set(xticks=[], yticks=[], aspect="equal")
    return figure


def main() -> int:
    arguments = arguments_of(str(__doc__), TABLES, seeds=3, runs="runs/energy_plane")
    results = results_of_tables(TABLES, arguments)
    lines = [
        "# Densities in the plane",
        "",
        f"Learned in {STEPS} steps of 128 points, normalised on a grid of {SIDE} x {SIDE} points. Distances to the true"
        f" density: mean ± standard error over seeds; KL(true, learned) in nats. For scale: the best"
        " single Gaussian.",
        "",
        "![densities](images/energy_plane.png)",
        "",
        "| data | method | total variation, % | KL, nats | accuracy, % | minutes |",
        "|---|---|---|---|---|---|",
    ]
    panels: dict[str, list[tuple[str, Grid, Tensor]]] = {}
    for table in TABLES:
        rows = results.get(table.name)
        if rows is None:
            continue
        panels[table.name] = []
        for row, runs in zip(table.rows, rows, strict=True):
            if not runs:
                continue
            found = [learned(str(numbers["run_dir"])) for numbers in runs]
            panels[table.name].append((row.label, *found[0]))
            pairs = np.array([distances(grid.true, mass) for grid, mass in found])
            accuracy = [numbers["Accuracy"] for numbers in runs if "Accuracy" in numbers]
            cells = [
                with_error(list(pairs[:, 0])),
                with_error(list(pairs[:, 1]), digits=3),
                f"{mean_and_error(accuracy)[0]:.1f}" if accuracy else "–",
                f"{mean_and_error([numbers['minutes'] for numbers in runs])[0]:.1f}",
            ]
            lines.append(f"| {table.title} | {row.label} | " + " | ".join(cells) + " |")
        grid = panels[table.name][0][1]
        centre = (grid.true.exp().unsqueeze(1) * grid.points).sum(0)
        spread = torch.cov(grid.points.T, aweights=grid.true.exp()).float()
        gaussian = torch.distributions.MultivariateNormal(centre.float(), spread).log_prob(grid.points)
        variation_of, divergence_of = distances(grid.true, normalised(gaussian))
        lines.append(f"| {table.title} | one Gaussian | {variation_of:.1f} | {divergence_of:.3f} | – | – |")
    write("\n".join([*lines, "", NOTES]), arguments.output)
    if arguments.output:
        images = arguments.output.parent / "images"
        images.mkdir(exist_ok=True)
        draw(panels).savefig(images / "energy_plane.png", dpi=160)
    return 0


if __name__ == "__main__":
    sys.exit(main())
