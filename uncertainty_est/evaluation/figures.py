"""The figures of a run or an ensemble, by the names of their files."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from uncertainty_est.data.module import OODDataModule
from uncertainty_est.evaluation import plots
from uncertainty_est.evaluation.plane import score_plane
from uncertainty_est.evaluation.samples import sample_figure
from uncertainty_est.evaluation.scoring import ScoredRun
from uncertainty_est.models.base import Method


def figures_of_scores(scored: ScoredRun, title: str) -> dict[str, Figure]:
    """Histograms and ROC curves for every score, and with classes a reliability diagram."""
    figures = {}
    for name, known in scored.id_data.scores.items():
        if not scored.ood:
            break
        unknown = {ood: data.scores[name] for ood, data in scored.ood.items()}
        slug = re.sub(r"\W+", "_", name).strip("_")
        figures[f"hist-{slug}.png"] = plots.score_histogram(known, unknown, score=name, title=title)
        figures[f"roc-{slug}.png"] = plots.roc_curves(known, unknown, score=name, title=title)
    if scored.id_data.probs is not None:
        figures["reliability.png"] = plots.reliability_diagram(scored.id_data.probs, scored.id_data.labels, title=title)
    return figures


def figures_of_method(method: Method, data: OODDataModule, title: str) -> dict[str, Figure]:
    """Every score over the plane of two features; samples of a generative model."""
    figures = {}
    if data.data_shape == (2,):
        figures["plane.png"] = score_plane(method, data, title=title)
    if method.can_sample:
        samples = sample_figure(method, data, title=title)
        if samples is not None:
            figures["samples.png"] = samples
    return figures
