"""What a method believes over the plane, for data sets of two features."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.models.base import Method

_SIDE = 160  # grid points along each axis
_MARGIN = 0.75  # of the data's extent, added on every side: how a score behaves away from the data is the point
_POINTS = 400  # test points drawn over the scores
_COLUMNS = 3
_REACH = 4.0


def score_plane(method: Method, data: OODDataModule, title: str) -> Figure:
    """Every score of `method` over the plane of a two-feature data set, with some of its test points.

    Colours run from the 1st to the 99th percentile of a score over the grid, but not further down than four widths
    of the test points' scores below them: what is darkest is out, however far. Brighter is more in-distribution.

    Args:
        method: scores ``[B, 2]``.
        data: set up, of shape ``(2,)``; its transform is applied to the grid, axes are in the data's own units.
        title: of the figure.
    """
    split = data.id_source.split("test")
    low, high = split.x.amin(0), split.x.amax(0)
    margin = _MARGIN * (high - low)
    axes_values = [torch.linspace(float(a), float(b), _SIDE) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = torch.cartesian_prod(*axes_values)
    scores = method.predict(data.transform(grid).to(method.device)).scores
    known = method.predict(data.transform(split.x).to(method.device)).scores

    columns = min(_COLUMNS, len(scores))
    rows = math.ceil(len(scores) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.3 * rows + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for panel in panels[len(scores) :]:
        panel.set_visible(False)
    for panel, (name, values) in zip(panels, scores.items(), strict=False):
        image = values.cpu().numpy().reshape(_SIDE, _SIDE).T
        bottom, top = np.percentile(image, [1, 99])
        least, most = np.percentile(known[name].cpu().numpy(), [1, 99])
        bottom = max(bottom, least - _REACH * (most - least))
        mesh = panel.pcolormesh(
            axes_values[0].numpy(),
            axes_values[1].numpy(),
            image,
            vmin=bottom,
            vmax=top,
            cmap="viridis",
            rasterized=True,
        )
        panel.scatter(*split.x[:_POINTS].T.numpy(), s=2, c="white", linewidths=0, alpha=0.7)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8)
        bar = figure.colorbar(mesh, ax=panel, extend="min")
        bar.ax.tick_params(labelsize=7)
        bar.formatter.set_powerlimits((-3, 4))  # type: ignore[attr-defined]
        bar.ax.yaxis.get_offset_text().set_fontsize(7)
    figure.suptitle(f"{title} (brighter = more in-distribution)", fontsize=10)
    return figure
