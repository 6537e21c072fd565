"""Figures show the numbers they are given, survive odd scores, and are saved whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from PIL import Image

from uncertainty_est.evaluation.plots import reliability_diagram, roc_curves, save_figure, score_histogram
from uncertainty_est.metrics.calibration import classification_metrics, reliability_bins
from uncertainty_est.metrics.ood import ood_metrics

RNG = np.random.default_rng(0)
ID = RNG.normal(0, 1, 4000)
OOD = {"near": RNG.normal(-1, 1, 1000), "far": RNG.normal(-3, 1, 500)}

ODD_SCORES = {
    "constant": (np.ones(20), np.ones(7)),
    "constant and large": (np.full(20, 3e38), np.full(7, 3e38)),
    "one each": ([0.0], [0.0]),
    "two constants": (np.ones(5), np.zeros(5)),
    "closer than rounding": ([1e8, 1e8 + 1e-7], [1e8]),
    "tiny": ([1e-300, 2e-300], [1e-300]),
    "least float32 for NaN": (np.append(np.arange(99.0), -3.4e38), [-3.4e38, 1.0]),
    "infinite": ([np.inf, np.inf], [-np.inf]),
}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def densities(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return {str(s.get_label()): (s.get_data().values, s.get_data().edges) for s in steps}


def test_histogram_shows_densities_of_all_sets() -> None:
    figure = score_histogram(ID, OOD, score="energy", title="a run")
    (axes,) = figure.axes
    assert legend(figure) == ["ID", "near", "far"]
    assert "energy" in axes.get_xlabel() and "percentile" in axes.get_xlabel()
    assert axes.get_title() == "a run"
    low, high = axes.get_xlim()
    for name, (heights, edges) in densities(axes).items():
        scores = {"ID": ID, **OOD}[name]
        assert (edges[0], edges[-1]) == (low, high)
        share = ((scores >= low) & (scores <= high)).mean()
        assert heights @ np.diff(edges) == pytest.approx(share, abs=1e-12)
        assert share > 0.98
        assert edges[heights.argmax()] == pytest.approx(np.median(scores), abs=0.7)


def test_histogram_is_not_flattened_by_a_heavy_tail_or_a_far_set() -> None:
    tail = np.concatenate([RNG.normal(-1, 1, 700), -np.exp(RNG.uniform(8, 20, 300))])
    figure = score_histogram(ID, {"tail": tail, "elsewhere": RNG.normal(-1e6, 1, 100)}, score="s", title="")
    low, high = figure.axes[0].get_xlim()
    width = np.subtract(*np.percentile(ID, [99.5, 0.5]))
    assert high - low < 6 * width
    assert legend(figure) == ["ID", "tail (30% off axis)", "elsewhere (100% off axis)"]


def test_histogram_says_where_it_cuts_a_peak() -> None:
    figure = score_histogram(ID, {**OOD, "constant": np.zeros(50)}, score="s", title="")
    (axes,) = figure.axes
    assert legend(figure) == ["ID", "near", "far", "constant (peak cut off)"]
    peaks = {name: heights.max() for name, (heights, _) in densities(axes).items()}
    assert max(peaks["ID"], peaks["near"], peaks["far"]) < axes.get_ylim()[1]
    assert peaks["constant (peak cut off)"] > axes.get_ylim()[1]


def test_roc_curves_show_the_auroc() -> None:
    figure = roc_curves(ID, OOD, score="energy", title="a run")
    (axes,) = figure.axes
    assert legend(figure) == [f"{name}  {ood_metrics(ID, s)['AUROC']:.3f}" for name, s in OOD.items()]
    assert axes.get_title() == "a run: energy"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("OOD accepted (FPR)", "ID accepted (TPR)")
    _, near, far = axes.get_lines()  # the first is the diagonal
    for line, scores in ((near, OOD["near"]), (far, OOD["far"])):
        fpr, tpr = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        area = (np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()
        assert area == pytest.approx(ood_metrics(ID, scores)["AUROC"], abs=1e-3)


def test_many_sets_look_different_and_stay_on_the_page() -> None:
    many = {f"OOD set number {i}": ID[:200] - i / 4 for i in range(18)}
    for figure in (
        score_histogram(ID, many, score="s", title="t"),
        roc_curves(ID, many, score="s", title="t"),
    ):
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        width, height = figure.get_size_inches() * figure.dpi
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert figure.axes[0].get_window_extent().height > 150  # the legend leaves room for the axes
    lines = figure.axes[0].get_lines()[1:]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 18


@pytest.mark.parametrize("id_scores, ood_scores", ODD_SCORES.values(), ids=ODD_SCORES)
def test_odd_scores_are_drawn(id_scores: np.ndarray, ood_scores: np.ndarray, tmp_path: Path) -> None:
    """Warnings are errors here."""
    figure = score_histogram(id_scores, {"ood": ood_scores}, score="s", title="")
    save_figure(figure, tmp_path / "histogram.png")
    heights, _ = densities(figure.axes[0])["ID"]
    assert heights.max() > 0 and np.isfinite(heights).all()
    save_figure(roc_curves(id_scores, {"ood": ood_scores}, score="s", title=""), tmp_path / "roc.png")


def test_no_ood_sets() -> None:
    assert legend(score_histogram(ID, {}, score="s", title="")) == ["ID"]
    assert legend(roc_curves(ID, {}, score="s", title="")) == []


def test_reliability_diagram_shows_the_bins() -> None:
    probs = RNG.dirichlet([0.5] * 4, 600)
    labels = np.where(RNG.random(600) < 0.7, probs.argmax(axis=1), 0)
    figure = reliability_diagram(probs, labels, title="a run")
    strip, axes = figure.axes
    bins, metrics = reliability_bins(probs, labels), classification_metrics(probs, labels)
    occupied = bins.counts > 0
    shares, accuracy, gaps = (
        np.array([(bar.get_x(), bar.get_y(), bar.get_height()) for bar in bars])
        for bars in (*strip.containers, *axes.containers)
    )
    np.testing.assert_allclose(shares[:, 2], bins.counts / 600)
    np.testing.assert_allclose(accuracy[:, 0], bins.edges[:-1][occupied])
    np.testing.assert_allclose(accuracy[:, 2], bins.accuracy[occupied])
    np.testing.assert_allclose(gaps[:, 1] + gaps[:, 2], bins.confidence[occupied])
    assert [text.get_text() for text in axes.texts] == [f"ECE {metrics['ECE']:.3f}\naccuracy {metrics['Accuracy']:.3f}"]
    assert strip.get_title() == "a run"


def test_figures_refuse_what_the_metrics_refuse() -> None:
    with pytest.raises(ValueError, match=r"ood_scores\['x'\] must not be NaN"):
        score_histogram(ID, {"x": [np.nan]}, score="s", title="")
    with pytest.raises(ValueError, match="id_scores must hold at least one score"):
        roc_curves([], OOD, score="s", title="")
    with pytest.raises(ValueError, match="labels must lie in"):
        reliability_diagram([[0.5, 0.5]], [2], title="")


def test_saved_as_the_suffix_says(tmp_path: Path) -> None:
    figure = score_histogram(ID, OOD, score="s", title="t")
    save_figure(figure, tmp_path / "figure.png")
    save_figure(figure, tmp_path / "figure.pdf")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == pytest.approx(200 * figure.get_size_inches()[0], abs=1)
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
    with pytest.raises(ValueError, match=r"must end in .png or .pdf, got 'figure.jpg'"):
        save_figure(figure, tmp_path / "figure.jpg")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def write_half(temporary: Path, **_: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    figure = roc_curves(ID, OOD, score="s", title="t")
    monkeypatch.setattr(figure, "savefig", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_is_not_needed(tmp_path: Path) -> None:
    """Importing pyplot picks a backend and keeps every figure alive."""
    code = (
        "import sys; from pathlib import Path; from uncertainty_est.evaluation import plots\n"
        "figure = plots.roc_curves([1.0, 2.0], {'a': [0.0]}, score='s', title='t')\n"
        "plots.save_figure(figure, Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "figure.png")], check=True)
    assert (tmp_path / "figure.png").exists()
