"""What a softmax classifier and CCU believe far from two moons: tables over seeds, and a picture.

    python benchmarks/ccu_two_moons.py --image docs/images/ccu_two_moons.png --output docs/ccu_two_moons.md

Exits with 1 where a certified ball holds a point above its bound.
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
from protocol import write
from torch import Tensor

from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.cli import log_to_console
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.launch import points_of
from uncertainty_est.models.base import Method
from uncertainty_est.models.ccu import CCU
from uncertainty_est.run import run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = {"fc_ce_baseline": "softmax", "fc_ccu": "CCU"}
NEAR, FAR, WIDE = 3.1, 50.0, 20.0
# In the units of the moons themselves: above them, and the corners of the box that they fill.
ABOVE = torch.tensor([[2.0, 2.0]])
CORNERS = torch.tensor([[-1.0, -0.5], [-1.0, 1.0], [2.0, -0.5], [2.0, 1.0]])
HEAD = """# CCU on two moons

1,000 points, the same network for both; CCU trains against uniform noise. Distances are in CCU's metric, the noise's
box in standardised features, other points in the moons' own units. A ball is certified where no class gets more than
1.1 / 2 = 0.55 anywhere in it. Trials of the method outside this project (noise over the box of their picture) had radii
of 0.15 to 0.22 at empty corners and 0.71 to 0.73 at (2, 2). Range over seeds:
"""


def trained(model: str, seed: int, epochs: int, reach: float, folder: str) -> tuple[Method, dict[str, Any]]:
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
        *([f"+fixed.sources.uniform_noise.reach={reach}"] if model == "fc_ccu" else []),
        f"fixed.output_folder={folder}",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        (fixed,) = points_of(compose("config", overrides=overrides), CONFIGS / "source")
    return checkpoints.load(Path(run(**fixed)["run_dir"])).method, fixed


def confidence(method: Method, x: Tensor) -> Tensor:
    """Largest class probability ``[B]`` of ``x: [B, 2]``, standardised."""
    probs = method.classify(x)
    assert probs is not None
    return probs.amax(-1)


def draw(methods: dict[str, Method], x: Tensor, y: Tensor, path: Path) -> None:
    """The confidence of each method over the plane near the data and far around them."""
    figure = Figure(figsize=(7.5, 6.4), layout="constrained")
    panels = figure.subplots(2, len(methods))
    for row, reach in zip(panels, (NEAR, WIDE), strict=True):
        side = torch.linspace(-reach, reach, 300)
        for panel, (name, method) in zip(row, methods.items(), strict=True):
            values = confidence(method, torch.cartesian_prod(side, side)).view(300, 300).T
            mesh = panel.pcolormesh(side, side, values, vmin=0.5, vmax=1.0, cmap="viridis", rasterized=True)
            for label, colour in ((0, "black"), (1, "tab:red")):
                panel.scatter(*x[y == label].T, s=1.5, c=colour, linewidths=0)
            panel.set_title(f"{name}, {'near' if reach == NEAR else 'far'}", fontsize=10)
            panel.set_aspect("equal")
            panel.tick_params(labelsize=8)
    figure.colorbar(mesh, ax=panels, label="max p(y|x)", shrink=0.6)
    figure.savefig(path, dpi=110)


def certificates(
    method: CCU, data: OODDataModule, noise_corners: Tensor, generator: torch.Generator
) -> tuple[dict[str, float], bool]:
    """Radii of certified balls, what was found in those at the noise's corners, and whether their bounds were kept."""
    radius = method.certified_radius(noise_corners)
    directions = torch.randn(2000, 4, 2, generator=generator, dtype=torch.float64)
    directions *= torch.rand(2000, 4, 1, generator=generator).double().sqrt() / directions.norm(dim=-1, keepdim=True)
    points = method.metric.whiten(noise_corners) + radius[:, None] * directions
    found = confidence(method, method.metric.unwhiten(points.view(-1, 2)).float()).double()
    bound = method.confidence_bound(noise_corners, radius)
    numbers = {
        "certified radius at (2, 2), above the moons": float(method.certified_radius(data.transform(ABOVE))),
        "largest certified radius at the corners of the moons": float(
            method.certified_radius(data.transform(CORNERS)).max()
        ),
        "certified radius at the corners of the noise": float(radius.mean()),
        "largest confidence found in these balls": float(found.max()),
        "bound there": float(bound.max()),
    }
    return numbers, bool((found.view(2000, 4) <= bound + 1e-7).all())


def table_of(reach: float, seeds: int, epochs: int, image: Path | None) -> tuple[list[str], bool]:
    """Lines of Markdown, with the range over seeds, and whether every bound was kept."""
    generator = torch.Generator().manual_seed(0)
    noise = reach * (2 * torch.rand(10_000, 2, generator=generator) - 1)
    angle = torch.linspace(0, 2 * torch.pi, 1000)
    far = FAR * torch.stack([angle.cos(), angle.sin()], dim=1)
    corners = reach * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    table: dict[str, dict[str, list[float]]] = {}
    all_kept = True
    for seed in range(1, seeds + 1):
        methods = {}
        for model, name in NAMES.items():
            with tempfile.TemporaryDirectory() as folder:
                method, fixed = trained(model, seed, epochs, reach, folder)
            methods[name] = method
            data = build_data(fixed)
            x, y = (torch.cat(parts) for parts in zip(*data.id_test_loader(), strict=True))
            probs = method.classify(x)
            assert probs is not None
            numbers = {
                "test accuracy": float((probs.argmax(-1) == y).double().mean()),
                "mean confidence, test points": float(probs.amax(-1).mean()),
                "mean confidence, uniform noise": float(confidence(method, noise).mean()),
                f"largest confidence, {FAR:g} away": float(confidence(method, far).max()),
            }
            if isinstance(method, CCU):
                certified, kept = certificates(method, data, corners, generator)
                numbers |= certified
                all_kept = all_kept and kept
            for key, value in numbers.items():
                table.setdefault(key, {}).setdefault(name, []).append(value)
        if seed == 1 and image is not None:
            draw(methods, x, y, image)
    lines = [
        f"| noise in [-{reach:g}, {reach:g}]^2; {seeds} seeds, {epochs} epochs | {' | '.join(NAMES.values())} |",
        f"|---|{'---|' * len(NAMES)}",
    ]
    for key, cells in table.items():
        ranges = [f"{min(cells[n]):.4f} to {max(cells[n]):.4f}" if n in cells else "" for n in NAMES.values()]
        lines.append(f"| {key} | {' | '.join(ranges)} |")
    return [*lines, ""], all_kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--reach", type=float, nargs="+", default=[5.0, 3.0])
    parser.add_argument("--image", type=Path, help="picture of the first reach's first seed")
    parser.add_argument("--output", type=Path, help="Markdown file (default: standard output)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log_to_console(logging.WARNING)
    lines, all_kept = [HEAD], True
    for reach in arguments.reach:
        image = arguments.image if reach == arguments.reach[0] else None
        more, kept = table_of(reach, arguments.seeds, arguments.epochs, image)
        lines += more
        all_kept = all_kept and kept
    write("\n".join(lines), arguments.output)
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
