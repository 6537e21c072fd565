"""Figures for a paper, from arrays alone: score histograms, ROC curves, reliability diagrams, learning curves.

Every figure stands outside pyplot: no display is needed, and nothing has to be closed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from uncertainty_est.files import write_atomically
from uncertainty_est.metrics.calibration import N_BINS, classification_metrics, reliability_bins
from uncertainty_est.metrics.ood import FloatArray, ood_metrics, roc_curve, sorted_scores

# Okabe & Ito's colours, which the colour-blind can tell apart, without yellow: too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = ("-", "--", ":")  # with the colours, 18 sets look different
_ID_FILL, _ID_EDGE = "#C9C9C9", "#5A5A5A"
_WIDTH = 4.5  # inches
_TEXT, _SMALL = 9, 8  # points
_TITLE_CHARACTERS = 50  # in a line
_LEGEND_COLUMNS = 3  # at most
_OFF_AXIS = 0.0101  # share of a set beyond the axis from which the legend names it; 1 % is by design
_PEAK = 4.0  # how many times the median peak a density may rise before it is cut off
_LARGEST = float(np.finfo(np.float32).max)
_REACH = 4.0  # how many times the width of the ID scores the axis may reach beyond them


def score_histogram(id_scores: ArrayLike, ood_scores: Mapping[str, ArrayLike], *, score: str, title: str) -> Figure:
    """Densities of a score on the ID set (filled) and on every OOD set (lines).

    The axis spans the 0.5 to 99.5 percentile of every set, yet at most four times the width of the ID scores
    on either side of them, and it does not follow a set that is farther away than that: neither a heavy tail
    nor a far set shall flatten the rest. Densities are of the whole set; the legend tells what share is off
    the axis where that is more than 1 %, and which peaks are cut off at four times the median peak.

    Args:
        id_scores: ``[n]``, higher = more in-distribution.
        ood_scores: name of an OOD set to its scores ``[m]``.
        score: name of the score, for the axis.
        title: of the figure.

    Raises:
        ValueError: scores that are empty, NaN or not one-dimensional.
    """
    scores = {"ID": sorted_scores(id_scores, "id_scores")}
    scores |= {name: sorted_scores(s, f"ood_scores['{name}']") for name, s in ood_scores.items()}
    # Infinite scores have no place on an axis: they count as the largest that float32 has.
    scores = {name: s.clip(-_LARGEST, _LARGEST) for name, s in scores.items()}
    low, high = _score_range(list(scores.values()))
    edges = np.linspace(low, high, int(np.clip(np.sqrt(scores["ID"].size), 10, 60)) + 1)

    densities = {name: _density(values, edges) for name, values in scores.items()}
    peaks = [heights.max() for heights in densities.values()]
    # A set that is all in one bin would flatten the others. Far sets, whose peak is 0, have no say.
    top = min(max(peaks), _PEAK * float(np.median([peak for peak in peaks if peak > 0])))

    figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
    label = f"{score} (higher = more in-distribution)\nshown: 0.5 to 99.5 percentile"
    axes = _axes(figure.add_subplot(), title, label, "density")
    styles: list[dict[str, Any]] = [{"fill": True, "facecolor": _ID_FILL, "edgecolor": _ID_EDGE, "linewidth": 0.8}]
    styles += [{**style, "linewidth": 1.3} for style in _styles(len(ood_scores))]
    for style, (name, heights) in zip(styles, densities.items(), strict=True):
        axes.stairs(heights, edges, label=name + _note(heights, edges, top), **style)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.05 * top)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(style="sci", scilimits=(-3, 4), useMathText=True)
    _legend(figure)
    return figure


def roc_curves(id_scores: ArrayLike, ood_scores: Mapping[str, ArrayLike], *, score: str, title: str) -> Figure:
    """Share of ID against share of OOD inputs accepted, one curve an OOD set, with its AUROC in the legend.

    Args:
        id_scores: ``[n]``, higher = more in-distribution.
        ood_scores: name of an OOD set to its scores ``[m]``.
        score: name of the score.
        title: of the figure.

    Raises:
        ValueError: scores that are empty, NaN or not one-dimensional.
    """
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = _axes(figure.add_subplot(), f"{title}: {score}", "OOD accepted (FPR)", "ID accepted (TPR)")
    axes.plot([0, 1], [0, 1], color=_ID_EDGE, linewidth=0.8, linestyle=(0, (1, 3)))
    for style, (name, scores) in zip(_styles(len(ood_scores)), ood_scores.items(), strict=True):
        auroc = ood_metrics(id_scores, scores)["AUROC"]
        axes.plot(*roc_curve(id_scores, scores), linewidth=1.4, label=f"{name}  {auroc:.3f}", **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _legend(figure, title="OOD set, AUROC")
    return figure


def reliability_diagram(probs: ArrayLike, labels: ArrayLike, *, title: str) -> Figure:
    """Accuracy against confidence in 15 bins of equal width, their gaps, and how many inputs are in each bin.

    Args:
        probs: ``[N, C]``, rows sum to 1.
        labels: ``[N]`` integers in [0, C).
        title: of the figure.

    Raises:
        ValueError: shapes, probabilities or labels that do not fit.

    References:
        Niculescu-Mizil & Caruana, ICML 2005; Guo et al., arXiv 1706.04599, figure 1.
    """
    bins = reliability_bins(probs, labels, N_BINS)
    metrics = classification_metrics(probs, labels)
    figure = Figure(figsize=(3.4, 4.1), layout="constrained")
    strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.5])
    _axes(strip, title, "", "share")
    _axes(axes, "", "confidence", "accuracy")

    left, width = bins.edges[:-1], np.diff(bins.edges)
    strip.bar(left, bins.counts / bins.counts.sum(), width, align="edge", color=_ID_FILL, edgecolor=_ID_EDGE)
    occupied = bins.counts > 0
    left, width = left[occupied], width[occupied]
    accuracy, confidence = bins.accuracy[occupied], bins.confidence[occupied]
    axes.bar(
        left,
        accuracy,
        width,
        align="edge",
        color=_COLOURS[0],
        edgecolor="white",
        linewidth=0.6,
        label="accuracy",
    )
    axes.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor=_COLOURS[1] + "40",  # one quarter opaque
        edgecolor=_COLOURS[1],
        hatch="////",
        linewidth=0.8,
        label="gap to confidence",
    )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=_SMALL, frameon=False)
    axes.text(
        0.97,
        0.05,
        f"ECE {metrics['ECE']:.3f}\naccuracy {metrics['Accuracy']:.3f}",
        ha="right",
        fontsize=_SMALL,
        transform=axes.transAxes,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )
    return figure


def learning_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, x: str, y: str, title: str
) -> Figure:
    """A quantity over another, one line with error bars a name.

    Args:
        curves: name to positions, means and errors, each ``[n]``; an error that is NaN (of one value) has no bar.
        x: name of the positions, for the axis.
        y: name of the quantity.
        title: of the figure.
    """
    figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
    axes = _axes(figure.add_subplot(), title, x, y)
    for style, (name, (positions, means, errors)) in zip(_styles(len(curves)), curves.items(), strict=True):
        axes.errorbar(
            positions,
            means,
            np.nan_to_num(errors),
            label=name,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            marker="o",
            markersize=2.5,
            **style,
        )
    _legend(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all: PNG at 200 dpi or PDF, as the suffix says.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in (".png", ".pdf"):
        raise ValueError(f"a figure's file must end in .png or .pdf, got '{path.name}'")
    with mpl.rc_context({"pdf.fonttype": 42}):  # TrueType: journals refuse the default Type 3 fonts
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=200))


def _score_range(ascending: list[FloatArray]) -> tuple[float, float]:
    """The axis of :func:`score_histogram`, never of width 0; the ID set comes first."""
    # Percentiles that are scores themselves: between the scores of a small set there may be none.
    lows = np.array([s[int(0.005 * (s.size - 1))] for s in ascending])
    highs = np.array([s[-1 - int(0.005 * (s.size - 1))] for s in ascending])
    medians = np.array([s[s.size // 2] for s in ascending])
    reach = _REACH * (highs[0] - lows[0])
    if reach > 0:
        nearest, farthest = lows[0] - reach, highs[0] + reach
        near = (nearest <= medians) & (medians <= farthest)
        low, high = max(lows[near].min(), nearest), min(highs[near].max(), farthest)
    else:
        low, high = lows.min(), highs.max()
    magnitude = max(abs(low), abs(high))
    if high - low <= 1e-9 * magnitude:  # constant scores, or too narrow for distinct bin edges
        margin = max(0.5, 0.01 * magnitude)
        low, high = low - margin, high + margin
    return float(low), float(high)


def _density(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Density in the bins, of the whole set: what is off the axis counts too."""
    return np.histogram(values, edges)[0] / (values.size * np.diff(edges))


def _note(heights: FloatArray, edges: FloatArray, top: float) -> str:
    """What the legend has to tell of a set that is not drawn whole."""
    off_axis = 1 - heights @ np.diff(edges)
    notes = [f"{off_axis:.0%} off axis"] if off_axis > _OFF_AXIS else []
    if heights.max() > top:
        notes.append("peak cut off")
    return f" ({', '.join(notes)})" if notes else ""


def _styles(n: int) -> list[dict[str, Any]]:
    return [
        {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i // len(_COLOURS) % len(_LINES)]} for i in range(n)
    ]


def _axes(axes: Axes, title: str, x: str, y: str) -> Axes:
    axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS), fontsize=_TEXT)
    axes.set_xlabel(x, fontsize=_TEXT)
    axes.set_ylabel(y, fontsize=_TEXT)
    axes.tick_params(labelsize=_SMALL)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _legend(figure: Figure, title: str | None = None) -> None:
    """Put a legend below the axes, in as many columns as fit, and make the figure higher by its rows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not handles:
        return
    column = 0.55 + 0.065 * max(map(len, labels))  # inches: the handle, and a little more than a mean character
    columns = max(1, min(_LEGEND_COLUMNS, int(_WIDTH / column)))
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(labels) // columns))
    figure.legend(
        handles,
        labels,
        title=title,
        loc="outside lower center",
        ncols=columns,
        fontsize=_SMALL,
        title_fontsize=_SMALL,
        frameon=False,
    )
