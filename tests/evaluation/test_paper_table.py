"""Tables for papers: hand-made rows, means and p-values in closed form, and the command on files."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.processes import Command
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.evaluation import table as command
from uncertainty_est.evaluation.paper_table import TableOptions, more_is_better, paper_table


def ood(config: str, values: dict[object, float], *, place: str = "far", **changes: object) -> pd.DataFrame:
    """Rows of one method as evaluate.py writes them, a value a seed."""
    row = {
        "Model Type": config.upper(),
        "ID dataset": "digits",
        "OOD dataset": place,
        "Score": "p(x)",
        "Metric": "AUROC",
        "Headline": True,
        "Group": "",
        "Config": config,
    }
    rows = [{**row, "Seed": s, "Run": f"{config}-{s}", "Value": v, **changes} for s, v in values.items()]
    return pd.DataFrame(rows)


@pytest.fixture
def rows() -> pd.DataFrame:
    """`a` is best on far, `b` by nearly as much, `c` clearly worse; `d` has one seed."""
    return pd.concat(
        [
            ood("a", {1: 90.0, 2: 92.0, 3: 94.0}),
            ood("b", {1: 91.0, 2: 91.0, 3: 92.0}),
            ood("c", {3: 83.0, 1: 80.0, 2: 81.0, 4: 99.0}),
            ood("d", {1: 70.0}),
            ood("a", {1: 30.0, 2: 20.0, 3: 10.0}, Metric="FPR95"),
            ood("b", {1: 5.0, 2: 5.0, 3: 5.0}, Metric="FPR95"),
        ],
        ignore_index=True,
    )


def cell(cells: pd.DataFrame, method: str, metric: str = "AUROC", place: str = "far") -> pd.Series:
    (row,) = (
        row
        for _, row in cells.iterrows()
        if (row["Method"], row["Metric"], row["OOD dataset"]) == (method, metric, place)
    )
    return row


def test_means_errors_and_marks(rows: pd.DataFrame) -> None:
    made = paper_table(rows, TableOptions(metrics=["AUROC", "FPR95"]))
    a, b, c, d = (cell(made.cells, method) for method in "abcd")
    assert a["Mean"] == 92 and a["Standard error"] == pytest.approx(2 / math.sqrt(3)) and a["Seeds"] == 3
    assert a["Best"] and not a["Not worse"] and math.isnan(a["p"])
    # Advantages -1, 1, 2: t = (2/3) / (sqrt(7/3) / sqrt(3)); Student's distribution with 2 degrees has a closed form.
    t = (2 / 3) / math.sqrt(7 / 9)
    assert b["p"] == pytest.approx(1 / 2 - t / (2 * math.sqrt(2 + t * t)))
    assert b["Not worse"] and not b["Best"]
    # Advantages 10, 11, 11 over the seeds that both have; the fourth of c counts in its mean alone.
    t = (32 / 3) / (math.sqrt(1 / 3) / math.sqrt(3))
    assert c["p"] == pytest.approx(1 / 2 - t / (2 * math.sqrt(2 + t * t))) and not c["Not worse"]
    assert c["Seeds"] == 4 and c["Mean"] == 85.75
    assert math.isnan(d["p"]) and not d["Not worse"] and math.isnan(d["Standard error"])
    assert cell(made.cells, "b", "FPR95")["Best"] and not cell(made.cells, "a", "FPR95")["Best"]
    assert made.rows == [("a", "p(x)"), ("b", "p(x)"), ("c", "p(x)"), ("d", "p(x)")]


def test_the_direction_is_the_metrics() -> None:
    less = ["FPR95", "Detection error", "MMC", "NLL", "ECE", "KL from uniform", "SCOD AURC", "Risk@80Cov"]
    assert not any(map(more_is_better, less))
    assert all(map(more_is_better, ["AUROC", "AUPR-IN", "SCOD Cov@5Risk", "Accuracy", "Brier resolution"]))


def test_equal_bests_are_all_marked() -> None:
    made = paper_table(pd.concat([ood("a", {1: 100.0, 2: 100.0}), ood("b", {1: 100.0, 2: 100.0})]))
    assert made.cells["Best"].all() and made.caption("italics").endswith("over 2 seeds. Bold: best mean.")


def test_groups_stand_together_with_their_mean_last_and_id_metrics_first(rows: pd.DataFrame) -> None:
    seeds = {1: 50.0, 2: 60.0}
    far = {"Group": "noise"}
    more = [
        ood("a", seeds, place="odd"),
        ood("a", seeds, place="uniform", **far),
        ood("a", seeds, place="near1", Group="near"),
        ood("a", seeds, place="constant", **far),
        ood("a", seeds, place="noise", Group="mean"),
        ood("a", seeds, place="near", Group="mean"),
        ood("a", seeds, Metric="Accuracy").drop(columns=["OOD dataset", "Headline", "Group"]).assign(Score=None),
    ]
    made = paper_table(pd.concat(more), TableOptions(metrics=["Accuracy", "AUROC"]))
    assert made.columns == [
        ("ID", "digits", "Accuracy"),
        ("noise", "uniform", "AUROC"),
        ("noise", "constant", "AUROC"),
        ("noise", "mean", "AUROC"),
        ("near", "near1", "AUROC"),  # of one set no mean
        ("", "odd", "AUROC"),
    ]
    latex = made.to_latex()
    assert r" &  & \multicolumn{1}{c}{ID} & \multicolumn{3}{c}{noise} & \multicolumn{1}{c}{near}" in latex
    assert r"\cmidrule(lr){3-3}\cmidrule(lr){4-6}\cmidrule(lr){7-7}" in latex


def test_units_other_than_percent_are_named() -> None:
    made = paper_table(
        pd.concat([ood("a", {1: 1.0}), ood("a", {1: 2.0}, Metric="NLL")]), TableOptions(["AUROC", "NLL"])
    )
    assert made.caption("italics") == "AUROC ↑, NLL ↓, in percent (NLL in nats), one seed. Bold: best mean."


def test_scores_are_the_headline_or_chosen() -> None:
    other = ood("a", {1: 1.0, 2: 3.0}, Score="max p(y|x)", Headline=False)
    many = pd.concat([ood("a", {1: 2.0, 2: 2.0}), ood("b", {1: 4.0, 2: 4.0}), other])
    assert paper_table(many).rows == [("a", "p(x)"), ("b", "p(x)")]
    chosen = paper_table(many, TableOptions(scores=["max p(y|x)", "p(x)"]))
    assert chosen.rows == [("a", "max p(y|x)"), ("a", "p(x)"), ("b", "p(x)")]
    # Rows of a headline score are not all marked as such: selective classification is not.
    scod = ood("a", {1: 7.0}, Metric="SCOD AUGRC", Headline=False)
    assert (
        cell(paper_table(pd.concat([many, scod]), TableOptions(["SCOD AUGRC"])).cells, "a", "SCOD AUGRC")["Mean"] == 7
    )


def test_ensembles_and_settings_are_methods_of_their_own() -> None:
    ensemble = ood("a", {"1+2": 3.0}, **{"Model Type": "Ensemble of A"})
    made = paper_table(pd.concat([ood("a", {1: 1.0, 2: 2.0}), ensemble]))
    assert made.rows == [("a (A)", "p(x)"), ("a (Ensemble of A)", "p(x)")]
    settings = pd.concat([ood("a", {1: 1.0}, lr=0.1), ood("a", {1: 2.0}, lr=0.2, Run="a-1-2")])
    assert paper_table(settings, TableOptions(by=["lr"])).rows == [("a, lr=0.1", "p(x)"), ("a, lr=0.2", "p(x)")]
    with pytest.raises(ConfigError, match=r"a has several runs with seed 1 \(a-1, a-1-2\); tell them apart by --by"):
        paper_table(settings)
    twice = pd.concat([ood("a", {1: 1.0}), ood("a", {1: 1.0})])  # the same run, evaluated twice
    assert paper_table(twice).cells["Seeds"].tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TableOptions(metrics=["AUROCC"]), r"--metrics AUROCC: the tables have no such metric; did you mean 'AUROC'\?"),
        (TableOptions(scores=["q(x)"]), r"--scores q\(x\): no method has such a score; did you mean 'p\(x\)'\?"),
        (TableOptions(by=["lr"]), "--by lr: no table has such a column"),
        (TableOptions(id_dataset="mnist"), "--id-dataset mnist: no run has it"),
        (TableOptions(metrics=["MMC"]), r"--metrics MMC: none of the scores shown has it; choose --scores among max"),
    ],
)
def test_wrong_names(rows: pd.DataFrame, options: TableOptions, message: str) -> None:
    confidence = ood("a", {1: 50.0}, Score="max p(y|x)", Metric="MMC", Headline=False)
    with pytest.raises(ConfigError, match=message):
        paper_table(pd.concat([rows, confidence]), options)


def test_several_id_datasets_and_no_headline(rows: pd.DataFrame) -> None:
    both = pd.concat([rows, ood("a", {1: 50.0}, **{"ID dataset": "wine"})])
    with pytest.raises(ConfigError, match="--id-dataset: the tables have digits, wine; choose one"):
        paper_table(both)
    assert paper_table(both, TableOptions(id_dataset="wine")).cells["Mean"].tolist() == [50.0]
    with pytest.raises(ConfigError, match="--scores: the tables do not tell the headline scores"):
        paper_table(rows.drop(columns="Headline"))


def test_markdown_and_latex(rows: pd.DataFrame) -> None:
    rows["Score"] = "p(y|x)"
    made = paper_table(rows.assign(Config=rows["Config"] + "_1"), TableOptions(test="wilcoxon"))
    assert made.to_markdown(1).splitlines() == [
        "AUROC ↑, in percent, mean ± standard error over 1 to 4 seeds. Bold: best mean; italics: not significantly"
        " worse (one-sided paired exact Wilcoxon signed-rank test over common seeds, p ≥ 0.05); untested with fewer"
        " than 3 common seeds.",
        "",
        "| Method | Score | far |",
        "| --- | --- | ---: |",
        r"| a_1 | p(y\|x) | **92.0 ± 1.2** |",
        r"| b_1 | p(y\|x) | *91.3 ± 0.3* |",
        r"| c_1 | p(y\|x) | *85.8 ± 4.5* |",  # three pairs are too few for ranks
        r"| d_1 | p(y\|x) | 70.0 |",
    ]
    latex = made.to_latex(1)
    assert r"a\_1 & p(y\textbar{}x) & \textbf{92.0 $\pm$ 1.2} \\" in latex
    assert r"b\_1 & p(y\textbar{}x) & \underline{91.3 $\pm$ 0.3} \\" in latex
    assert r"p $\geq$ 0.05)" in latex and "AUROC $\\uparrow$" in latex
    assert latex.count("{") == latex.count("}") and not re.search(r"(?<!\\)[_%#]|[±↑≥]", latex)


def test_the_command_prints_and_writes(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.to_csv(tmp_path / "ood-x.csv", index=False)
    outputs = [tmp_path / "paper" / f"table.{ending}" for ending in ("md", "tex", "csv")]
    arguments = [str(tmp_path / "ood-x.csv"), "--metrics", "AUROC,FPR95"]
    for path in outputs:
        arguments += ["--output", str(path)]
    result = Command(["-m", "uncertainty_est.evaluation.table", *arguments]).wait()
    assert result.returncode == 0, result.stderr
    made = paper_table(rows, TableOptions(metrics=["AUROC", "FPR95"]))
    assert result.stdout == outputs[0].read_text() == made.to_markdown()
    assert outputs[1].read_text() == made.to_latex()
    read = pd.read_csv(outputs[2])
    pd.testing.assert_frame_equal(read.drop(columns="Group"), made.cells.drop(columns="Group"), check_dtype=False)


def test_files_that_are_no_tables(rows: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"none\.csv: there is no such file; evaluate\.py writes"):
        command.read_tables([tmp_path / "none.csv"])
    path = tmp_path / "some.csv"
    path.write_text("")
    with pytest.raises(DataError, match=r"some\.csv: this is no table that evaluate\.py wrote \(No columns"):
        command.read_tables([path])
    rows.drop(columns="Seed").to_csv(path, index=False)
    with pytest.raises(DataError, match=r"some\.csv: there is no column 'Seed'"):
        command.read_tables([path])
    with pytest.raises(SystemExit):
        command.main([str(path), "--output", "table.pdf"])
    assert "must end in .md, .tex, .csv, got table.pdf" in capsys.readouterr().err
