"""What a softmax classifier and CCU believe far from two moons: a table over seeds, and a picture.

    python benchmarks/ccu_two_moons.py [--image docs/images/ccu_two_moons.png]

Trains both on 1,000 points with the same network, CCU against uniform noise in [-5, 5]^2 (standardised features).
Prints a Markdown table with the range over seeds; exits with 1 where a certified ball holds a point above its bound.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import Tensor

from uncertainty_est import checkpoints
from uncertainty_est.cli import log_to_console
from uncertainty_est.launch import points_of
from uncertainty_est.models.base import Method
from uncertainty_est.models.ccu import CCU
from uncertainty_est.run import build_data, run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = {"fc_ce_baseline": "softmax", "fc_ccu": "CCU"}
BOX, FAR, WIDE = 5.0, 50.0, 20.0


def trained(model: str, seed: int, epochs: int, folder: str) -> tuple[Method, dict[str, Any]]:
    """A method after `epochs` on two moons, and the configuration that its run was made of."""
    overrides = [
        "dataset=two_moons",
        f"model={model}",
        "trainer=cpu",
        "logger=none",
        f"fixed.seed={seed}",
        f"fixed.trainer_config.max_epochs={epochs}",
        "fixed.trainer_config.enable_progress_bar=false",
        "fixed.earlystop_config=null",
        "fixed.checkpoint_config.monitor=null",
        "+fixed.sources.two_moons.n=1000",
        f"fixed.output_folder={folder}",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        (fixed,) = points_of(compose("config", overrides=overrides), CONFIGS / "source")
    return checkpoints.load(Path(run(**fixed)["run_dir"]), run).method, fixed


def confidence(method: Method, x: Tensor) -> Tensor:
    """Largest class probability ``[B]`` of ``x: [B, 2]``, standardised."""
    probs = method.classify(x)
    assert probs is not None
    return probs.amax(-1)


def draw(methods: dict[str, Method], x: Tensor, y: Tensor, path: Path) -> None:
    """The confidence of each method over the plane near the data and far around them."""
    figure = Figure(figsize=(7.5, 6.4), layout="constrained")
    panels = figure.subplots(2, len(methods))
    for row, reach in zip(panels, (BOX / 1.6, WIDE), strict=True):
        side = torch.linspace(-reach, reach, 300)
        for panel, (name, method) in zip(row, methods.items(), strict=True):
            values = confidence(method, torch.cartesian_prod(side, side)).view(300, 300).T
            mesh = panel.pcolormesh(side, side, values, vmin=0.5, vmax=1.0, cmap="viridis", rasterized=True)
            for label, colour in ((0, "black"), (1, "tab:red")):
                panel.scatter(*x[y == label].T, s=1.5, c=colour, linewidths=0)
            panel.set_title(f"{name}, {'near' if reach < BOX else 'far'}", fontsize=10)
            panel.set_aspect("equal")
            panel.tick_params(labelsize=8)
    figure.colorbar(mesh, ax=panels, label="max p(y|x)", shrink=0.6)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log_to_console(logging.WARNING)
    generator = torch.Generator().manual_seed(0)
    noise = BOX * (2 * torch.rand(10_000, 2, generator=generator) - 1)
    angle = torch.linspace(0, 2 * torch.pi, 1000)
    far = FAR * torch.stack([angle.cos(), angle.sin()], dim=1)
    corners = BOX * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    table: dict[str, dict[str, list[float]]] = {}
    kept = True
    for seed in range(1, arguments.seeds + 1):
        methods = {}
        for model, name in NAMES.items():
            with tempfile.TemporaryDirectory() as folder:
                method, fixed = trained(model, seed, arguments.epochs, folder)
            methods[name] = method
            data = build_data(fixed)
            x, y = (torch.cat(parts) for parts in zip(*data.id_test_loader(), strict=True))
            probs = method.classify(x)
            assert probs is not None
            numbers = {
                "test accuracy": float((probs.argmax(-1) == y).double().mean()),
                "mean confidence, test points": float(probs.amax(-1).mean()),
                f"mean confidence, uniform in [-{BOX:g}, {BOX:g}]^2": float(confidence(method, noise).mean()),
                f"largest confidence, {FAR:g} away": float(confidence(method, far).max()),
            }
            if isinstance(method, CCU):
                radius = method.certified_radius(corners)
                directions = torch.randn(2000, 4, 2, generator=generator, dtype=torch.float64)
                directions *= torch.rand(2000, 4, 1, generator=generator).double().sqrt() / directions.norm(
                    dim=-1, keepdim=True
                )
                points = method.metric.whiten(corners) + radius[:, None] * directions
                found = confidence(method, method.metric.unwhiten(points.view(-1, 2)).float()).double()
                bound = method.confidence_bound(corners, radius)
                kept = kept and bool((found.view(2000, 4) <= bound + 1e-7).all())
                numbers |= {
                    "certified radius at the box's corners": float(radius.mean()),
                    "largest confidence found in those balls": float(found.max()),
                    "bound there": float(bound.max()),
                }
            for key, value in numbers.items():
                table.setdefault(key, {}).setdefault(name, []).append(value)
        if seed == 1 and arguments.image is not None:
            draw(methods, x, y, arguments.image)
    print(f"| {arguments.seeds} seeds, {arguments.epochs} epochs | {' | '.join(NAMES.values())} |")
    print(f"|---|{'---|' * len(NAMES)}")
    for key, cells in table.items():
        ranges = [f"{min(cells[n]):.4f} to {max(cells[n]):.4f}" if n in cells else "" for n in NAMES.values()]
        print(f"| {key} | {' | '.join(ranges)} |")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
