"""A paper's table from the tidy ones: methods by OOD sets, mean ± standard error over seeds, the best marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.metrics.paired import MIN_PAIRS, TESTS, p_value

ID_GROUP = "ID"
"""Group of the columns that are about the in-distribution test set: accuracy, calibration."""
LEVEL = 0.05
"""A method whose p-value is at least this is not significantly worse than the best."""

# Parts of the names of metrics of which more is better; of errors, divergences and confidences on OOD sets, less.
_MORE_IS_BETTER = ("AUROC", "AUPR", "Accuracy", "Cov@", "resolution")
# Parts of the names of metrics with a unit; all others are in percent.
_UNITS = {"NLL": "nats", "entropy": "nats", "KL": "nats", "Bits": "bits"}
_BAR = r"\|"  # in a table of Markdown
_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "|": r"\textbar{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "≥": r"$\geq$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
    }
)
_ROW, _COLUMN = ["Method", "Score"], ["Group", "OOD dataset", "Metric"]


@dataclass(frozen=True)
class TableOptions:
    """What the table shows.

    Attributes:
        metrics: in this order within an OOD set.
        scores: a row for each that a method has; empty for each method's headline score.
        by: further columns of the tidy tables that tell methods apart: config entries.
        id_dataset: of the runs; needed where the tables have several.
        test: a key of :data:`~uncertainty_est.metrics.paired.TESTS`.
    """

    metrics: Sequence[str] = ("AUROC",)
    scores: Sequence[str] = ()
    by: Sequence[str] = ()
    id_dataset: str | None = None
    test: str = "t"


@dataclass(frozen=True)
class PaperTable:
    """A table, and how it is written.

    Attributes:
        rows: method and score of each row.
        columns: group of the OOD set, OOD set (``mean`` for the group's) and metric of each column.
        cells: one row a cell: ``Method, Score, Group, OOD dataset, Metric, Mean, Standard error`` (NaN of one seed),
            ``Seeds`` (their number), ``p`` (of being no worse than the best; NaN of the best, and where nothing could
            be tested), ``Best`` and ``Not worse``.
        options: that it was made with.
    """

    rows: list[tuple[str, str]]
    columns: list[tuple[str, str, str]]
    cells: pd.DataFrame
    options: TableOptions

    def caption(self, mark: str) -> str:
        """What the numbers mean, and the marks: bold, and `mark` for what is not significantly worse than the best."""
        low, high = self.cells["Seeds"].min(), self.cells["Seeds"].max()
        seeds = f"{low}" if low == high else f"{low} to {high}"
        numbers = f"mean ± standard error over {seeds} seeds" if high > 1 else "one seed"
        others = [
            f"{metric} in {unit}" for metric in self.options.metrics for part, unit in _UNITS.items() if part in metric
        ]
        unit = f"percent ({', '.join(others)})" if others else "percent"
        marks = ["Bold: best mean"]
        if self.cells["p"].notna().any():
            test = TESTS[self.options.test][1]
            marks.append(f"{mark}: not significantly worse (one-sided paired {test} over common seeds, p ≥ {LEVEL:g})")
        if (self.cells["p"].isna() & ~self.cells["Best"]).any():
            marks.append(f"untested with fewer than {MIN_PAIRS} common seeds")
        metrics = ", ".join(map(_pointed, self.options.metrics))
        return f"{metrics}, in {unit}, {numbers}. {'; '.join(marks)}."

    def to_csv(self) -> str:
        """The cells as they are, for other programs."""
        return self.cells.to_csv(index=False)

    def to_markdown(self, digits: int = 2) -> str:
        """Caption and table; the best in bold, what is not significantly worse in italics."""

        def cell(numbers: str, best: bool, not_worse: bool) -> str:
            mark = "**" if best else "*" if not_worse else ""
            return f"{mark}{numbers}{mark}"

        places = [" / ".join(filter(None, column[:2])) for column in self.columns]
        metrics = [f" {_pointed(metric)}" if len(self.options.metrics) > 1 else "" for _, _, metric in self.columns]
        header = [f"{place}{metric}" for place, metric in zip(places, metrics, strict=True)]
        lines = [[*_ROW, *header], ["---", "---", *(["---:"] * len(header))]]
        lines += [[*row, *cells] for row, cells in zip(self.rows, self._texts(cell, digits), strict=True)]
        table = "\n".join(f"| {' | '.join(text.replace('|', _BAR) for text in line)} |" for line in lines)
        return f"{self.caption('italics')}\n\n{table}\n"

    def to_latex(self, digits: int = 2) -> str:
        r"""A ``table`` for LaTeX with the package booktabs; the best in bold, what is not worse ``\underline``."""

        def cell(numbers: str, best: bool, not_worse: bool) -> str:
            text = _latex(numbers)
            return rf"\textbf{{{text}}}" if best else rf"\underline{{{text}}}" if not_worse else text

        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.caption('underlined'))}}}",
            rf"\begin{{tabular}}{{ll{'r' * len(self.columns)}}}",
            r"\toprule",
        ]
        if any(group for group, _, _ in self.columns):
            lines += _spans([(group,) for group, _, _ in self.columns])
        if len(self.options.metrics) > 1:
            lines += _spans([column[:2] for column in self.columns])
            lowest = [_pointed(metric) for _, _, metric in self.columns]
        else:
            lowest = [name for _, name, _ in self.columns]
        lines += [_line([*_ROW, *map(_latex, lowest)]), r"\midrule"]
        for row, cells in zip(self.rows, self._texts(cell, digits), strict=True):
            lines.append(_line([*map(_latex, row), *cells]))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def _texts(self, cell: Callable[[str, bool, bool], str], digits: int) -> list[list[str]]:
        """Every cell as `cell` writes its numbers, whether it is the best and whether it is not worse."""
        texts = {}
        for *key, mean, error, _, _, best, not_worse in self.cells.itertuples(index=False, name=None):
            numbers = f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")
            texts[tuple(key)] = cell(numbers, best, not_worse)
        return [[texts.get(row + column, "--") for column in self.columns] for row in self.rows]


def paper_table(rows: pd.DataFrame, options: TableOptions = TableOptions()) -> PaperTable:  # noqa: B008 (immutable)
    """Mean ± standard error over seeds of each method and score (rows) on each OOD set and metric (columns).

    A method is a configuration with the values of ``options.by``; runs of one method are paired with another's by
    their seed. In each column the methods with the best mean are marked, and those that the one-sided paired test over
    the common seeds does not call worse than the first of these, at the level 0.05 and without a correction for many
    comparisons.

    Args:
        rows: of ``ood-<name>.csv``, or ``Report.ood``; with rows of ``clf-<name>.csv`` beneath, metrics of the
            in-distribution set can be chosen too.
        options: see :class:`TableOptions`.

    Raises:
        ConfigError: a name that the rows do not have, several in-distribution sets, or two runs of one method and seed.
    """
    rows = _one_id_dataset(_tidy(rows), options.id_dataset)
    rows["Method"] = _methods(rows, options.by)
    chosen = _chosen(rows, options)
    rows = _of_metrics(rows, options.metrics)
    of_score = chosen.merge(rows, on=_ROW)
    of_any_score = chosen.merge(rows[rows["Score"] == ""].drop(columns="Score"), on="Method")
    shown = pd.concat([of_score, of_any_score], ignore_index=True)
    for metric in options.metrics:
        if metric not in set(shown["Metric"]):
            having = ", ".join(sorted(set(rows.loc[rows["Metric"] == metric, "Score"])))
            raise ConfigError(f"--metrics {metric}: none of the scores shown has it; choose --scores among {having}")
    _check_seeds(shown)
    parts = dict(iter(shown.groupby(_COLUMN, sort=False)))
    columns = [column for column in _in_order(rows, options.metrics) if column in parts]
    cells = pd.concat([_cells(parts[column], column, options.test) for column in columns], ignore_index=True)
    there = set(cells[_ROW].itertuples(index=False, name=None))
    order = [row for row in chosen.itertuples(index=False, name=None) if row in there]
    return PaperTable(order, columns, cells, options)


def more_is_better(metric: str) -> bool:
    """Whether larger values of a metric are better ones."""
    return any(part in metric for part in _MORE_IS_BETTER)


# -------------------------------------------------------------------------------------------------------- the steps


def _tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Without empty cells; rows of classification get the group ``ID``, means of groups stand in their group."""
    rows = rows.reset_index(drop=True)
    for column in ("OOD dataset", "Group", "Score"):
        rows[column] = rows[column].astype(object).fillna("").astype(str) if column in rows else ""
    rows["Headline"] = rows["Headline"].eq(True) if "Headline" in rows else False
    rows["Seed"] = rows["Seed"].astype(str)
    of_id, of_group = rows["OOD dataset"] == "", rows["Group"] == "mean"
    rows.loc[of_group, "Group"] = rows["OOD dataset"]
    rows.loc[of_group, "OOD dataset"] = "mean"
    rows.loc[of_id, "Group"] = ID_GROUP
    rows.loc[of_id, "OOD dataset"] = rows["ID dataset"]
    # A run that was evaluated twice says the same twice.
    return rows.drop_duplicates(["Config", "Seed", "Run", "ID dataset", "Score", *_COLUMN, "Value"])


def _one_id_dataset(rows: pd.DataFrame, wanted: str | None) -> pd.DataFrame:
    names = list(rows["ID dataset"].unique())
    if wanted is not None and wanted not in names:
        raise ConfigError(f"--id-dataset {wanted}: no run has it{did_you_mean(wanted, names)}")
    if wanted is None and len(names) > 1:
        raise ConfigError(f"--id-dataset: the tables have {', '.join(names)}; choose one of them")
    return rows[rows["ID dataset"] == (wanted or names[0])].copy()


def _methods(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Names of the rows' methods: the configuration, the type where one configuration has several, values of `by`."""
    several = rows.groupby("Config")["Model Type"].transform("nunique") > 1
    names = rows["Config"].where(~several, rows["Config"] + " (" + rows["Model Type"] + ")")
    for column in by:
        if column not in rows:
            raise ConfigError(f"--by {column}: no table has such a column; evaluate.py --config-entries adds it")
        names = names + f", {column}=" + rows[column].astype(str)
    return names


def _chosen(rows: pd.DataFrame, options: TableOptions) -> pd.DataFrame:
    """Method and score of the table's rows."""
    there = rows.loc[rows["Score"] != "", _ROW].drop_duplicates()
    for score in options.scores:
        if score not in set(there["Score"]):
            raise ConfigError(f"--scores {score}: no method has such a score{did_you_mean(score, there['Score'])}")
    if options.scores:
        wanted = pd.DataFrame({"Score": list(dict.fromkeys(options.scores))})
        return there[["Method"]].drop_duplicates().merge(wanted, how="cross").merge(there, on=_ROW)
    headlines = rows.loc[rows["Headline"], _ROW].drop_duplicates()
    if not len(headlines):
        raise ConfigError(
            "--scores: the tables do not tell the headline scores; add an ood-<name>.csv or choose scores"
        )
    return headlines


def _of_metrics(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    known = list(rows["Metric"].unique())
    for metric in metrics:
        if metric not in known:
            raise ConfigError(f"--metrics {metric}: the tables have no such metric{did_you_mean(metric, known)}")
    return rows[rows["Metric"].isin(metrics)]


def _check_seeds(shown: pd.DataFrame) -> None:
    keys = [*_ROW, *_COLUMN, "Seed"]
    doubled = shown[shown.duplicated(keys, keep=False)]
    if len(doubled):
        first = doubled.iloc[0]
        same = doubled[(doubled[keys] == first[keys]).all(axis=1)]
        raise ConfigError(
            f"{first['Method']} has several runs with seed {first['Seed']} ({', '.join(same['Run'])});"
            f" tell them apart by --by and a column of evaluate.py --config-entries, or leave some out"
        )


def _in_order(rows: pd.DataFrame, metrics: Sequence[str]) -> list[tuple[str, str, str]]:
    """Columns: what is about ID data, then groups as they appear with their mean last, then sets without a group."""
    places = rows[_COLUMN[:2]].drop_duplicates()
    # The mean of a group of one is that one.
    places = places[(places["OOD dataset"] != "mean") | (places.groupby("Group")["Group"].transform("size") > 2)]
    groups = [ID_GROUP, *(group for group in places["Group"].unique() if group not in (ID_GROUP, "")), ""]
    pairs = sorted(
        places.itertuples(index=False, name=None), key=lambda place: (groups.index(place[0]), place[1] == "mean")
    )
    return [(*pair, metric) for pair in pairs for metric in metrics]


def _cells(part: pd.DataFrame, column: tuple[str, str, str], test: str) -> pd.DataFrame:
    """One column of the table."""
    wide = part.pivot(index=_ROW, columns="Seed", values="Value").astype(float)
    values = wide.to_numpy()
    mean = wide.mean(axis=1)
    best = mean == (mean.max() if more_is_better(column[2]) else mean.min())
    champion = values[int(best.to_numpy().argmax())]
    nan = float("nan")
    sign = 1 if more_is_better(column[2]) else -1
    advantages = sign * (champion - values)
    p = [nan if is_best else p_value(row, test) for row, is_best in zip(advantages, best, strict=True)]
    cells = wide.index.to_frame(index=False).assign(**dict(zip(_COLUMN, column, strict=True)))
    cells["Mean"] = mean.to_numpy()
    cells["Standard error"] = wide.sem(axis=1, ddof=1).to_numpy()
    cells["Seeds"] = wide.count(axis=1).to_numpy()
    cells["p"] = p
    cells["Best"] = best.to_numpy()
    cells["Not worse"] = cells["p"] >= LEVEL
    return cells


# ------------------------------------------------------------------------------------------------------------ LaTeX


def _spans(places: Sequence[tuple[str, ...]]) -> list[str]:
    """A line of the header with equal neighbors as one cell, called by their last name, and rules beneath."""
    cells, rules, start = ["", ""], "", 3
    for place, run in groupby(places):
        width = len(list(run))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex(place[-1])}}}")
        if place[-1]:
            rules += rf"\cmidrule(lr){{{start}-{start + width - 1}}}"
        start += width
    return [_line(cells), rules]


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _pointed(metric: str) -> str:
    """A metric with an arrow that points where it is better."""
    return f"{metric} {'↑' if more_is_better(metric) else '↓'}"
