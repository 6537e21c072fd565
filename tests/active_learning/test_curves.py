"""Curves over seeds: means, standard errors, and what is no table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from uncertainty_est.active_learning.curves import COLUMNS, CURVE_FILE, draw, main, read_curves, summary
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.evaluation.plots import learning_curves


def table(acquisition: str, seed: int, share: float | None = None) -> pd.DataFrame:
    rng = np.random.default_rng([seed, len(acquisition)])
    rows = [
        (seed, step, 20 + 5 * step, acquisition, "m", "d", rng.uniform(50, 90), rng.uniform(), share, 0.1)
        for step in range(3)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write(folder: Path, rows: pd.DataFrame) -> Path:
    folder.mkdir(parents=True)
    rows.to_csv(folder / CURVE_FILE, index=False)
    return folder / CURVE_FILE


def test_mean_and_standard_error_over_seeds() -> None:
    tables = [table("random", seed) for seed in (1, 2, 3)]
    found = summary(pd.concat([*tables, table("entropy", 1)]), "Accuracy")
    values = np.stack([rows["Accuracy"] for rows in tables])
    lines = found[found["Acquisition"] == "random"]
    assert lines["Labels"].tolist() == [20, 25, 30] and lines["Seeds"].tolist() == [3] * 3
    np.testing.assert_allclose(lines["Mean"], values.mean(0))
    np.testing.assert_allclose(lines["Error"], stats.sem(values))
    single = found[found["Acquisition"] == "entropy"]
    assert single["Seeds"].tolist() == [1] * 3 and single["Error"].isna().all()
    assert summary(tables[0], "Ambiguous share").empty


def test_several_runs_in_one_figure(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / str(seed), table(name, seed, 40.0)) for name in ("random", "a") for seed in (1, 2)]
    rows = read_curves([paths[0].parents[1], *paths[2:]])
    assert len(rows) == 12
    files = draw(rows, tmp_path / "f.png")
    assert [path.name for path in files] == ["f.png", "f-ambiguous.png"]
    assert main([str(tmp_path), "--output", str(tmp_path / "new" / "g.pdf")]) == 0
    assert (tmp_path / "new" / "g.pdf").read_bytes().startswith(b"%PDF")


def test_bars_are_errors_and_a_single_seed_has_none() -> None:
    curves = {"a": ([1, 2], [50.0, 60.0], [1.0, 2.0]), "b": ([1, 2], [40.0, 50.0], [np.nan, np.nan])}
    axes = learning_curves(curves, x="labels", y="accuracy", title="t").axes[0]
    for container, (x, mean, error) in zip(axes.containers, curves.values(), strict=True):
        line, _, (bars,) = container
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([x, mean]))
        heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        np.testing.assert_allclose(heights, 2 * np.nan_to_num(error))
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["a", "b"]


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no curve.csv; give what"):
        read_curves([tmp_path])
    with pytest.raises(ConfigError, match="--output: must end in .png or .pdf"):
        main([str(tmp_path), "--output", "f.txt"])
    (tmp_path / CURVE_FILE).write_text("")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_curves([tmp_path])
    write(tmp_path / "other", table("random", 1).drop(columns="NLL"))
    with pytest.raises(DataError, match="has no column 'NLL'"):
        read_curves([tmp_path / "other"])
