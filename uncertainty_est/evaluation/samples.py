"""What a generative method draws, beside what it was trained on."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.models.base import Method, scoring_mode

_SIDE = 8  # images along each side of a panel
_POINTS = 1000  # of a two-feature set
_SEED = 0


def sample_figure(method: Method, data: OODDataModule, title: str) -> Figure | None:
    """Test inputs and draws of ``method.sample`` side by side, in the data's own units.

    Images as a grid of 8 by 8, two features as points; ``None`` for wider tables, which no picture shows.

    Args:
        method: a generative one.
        data: set up; its transform is undone.
        title: of the figure.
    """
    if len(data.data_shape) != 3 and data.data_shape != (2,):
        return None
    n = _SIDE**2 if len(data.data_shape) == 3 else _POINTS
    generator = torch.Generator(method.device).manual_seed(_SEED)
    with scoring_mode(method):
        drawn = data.transform.invert(method.sample(n, generator)).cpu()
    real = data.id_source.split("test").x[:n].float()
    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, x, name in zip(panels, (real, drawn), ("test set", "samples"), strict=True):
        panel.set_title(name, fontsize=9)
        if x.ndim == 4:
            panel.imshow(_grid(x), interpolation="nearest")
            panel.set_axis_off()
        else:
            panel.scatter(*x.T.numpy(), s=3, linewidths=0)
            panel.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _grid(x: Tensor) -> np.ndarray:
    """Images ``[N, C, H, W]`` with levels 0..255 as one picture ``[H', W', 3]`` uint8."""
    grid = make_grid(x, nrow=_SIDE, padding=1, pad_value=255.0)
    return grid.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
