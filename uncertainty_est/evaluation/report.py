"""Evaluate many runs: tables, aggregates and figures, written after every run so that nothing computed is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from uncertainty_est import checkpoints
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import USER_ERRORS, ConfigError, DataError
from uncertainty_est.evaluation import plots
from uncertainty_est.evaluation.adversarial import Arena, AttackOptions
from uncertainty_est.evaluation.aggregate import RunTables, aggregate
from uncertainty_est.evaluation.certify import CertifyOptions, certify_run
from uncertainty_est.evaluation.complexity import complexity_table
from uncertainty_est.evaluation.ddu_json import ddu_results
from uncertainty_est.evaluation.ensemble import Member, combine, group_members, names_of
from uncertainty_est.evaluation.entries import check_entries, entries_of
from uncertainty_est.evaluation.figures import figures_of_method, figures_of_scores
from uncertainty_est.evaluation.reading import Reading, fit_scores, std_of
from uncertainty_est.evaluation.scoring import ScoredRun, save_scores, score_run
from uncertainty_est.evaluation.tables import RunInfo, all_rows, clf_table, ood_table
from uncertainty_est.evaluation.temperature import fit_scaling, mark_clf, mark_ood, scaled_run
from uncertainty_est.files import write_csv, write_json, write_npz
from uncertainty_est.posthoc.base import scores_named
from uncertainty_est.run_folder import SPLITS_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What to compute and where to write it.

    Attributes:
        output_folder: an existing folder.
        name: goes into the names of the files: ``ood-<name>.csv``.
        id_dataset: data set scored in place of the run's own ID test set.
        ood_datasets: OOD sets in place of the run's own; empty means the run's own.
        classification: write ``clf-<name>.csv``.
        ood_calibration: add rows for the predictions' divergence from uniform on OOD data.
        scod: add rows of selective classification among OOD inputs, for methods with classes.
        complexity: write ``complexity-<name>.csv``.
        ensemble: score runs with classes that differ only in seed together as well.
        ddu_json: write results in DDU's own form to ``ddu-<name>/`` as well.
        max_batches: limit for every data set.
        config_entries: dotted keys of the run's configuration that become columns.
        batch_size: in place of the run's ``eval_batch_size``.
        device: where to score.
        figures: draw them.
        temperature_scaling: add rows of the answers after temperature scaling, where they are a softmax of logits.
        scores: post-hoc scores to compute as well, as ``--scores`` names them, where there are features and logits.
        certify: write ``cert-<name>.csv`` for the runs whose methods have certificates.
        attack: write ``attack-<name>.csv`` for the runs whose methods have classes.
    """

    output_folder: Path
    name: str = "out"
    id_dataset: str | None = None
    ood_datasets: Sequence[str] = ()
    classification: bool = False
    ood_calibration: bool = False
    scod: bool = False
    complexity: bool = False
    ensemble: bool = False
    ddu_json: bool = False
    max_batches: int | None = None
    config_entries: Sequence[str] = ()
    batch_size: int | None = None
    device: str = "cpu"
    figures: bool = True
    temperature_scaling: bool = False
    scores: Sequence[str] = ()
    certify: CertifyOptions | None = None
    attack: AttackOptions | None = None


@dataclass
class Report:
    """What came out.

    Attributes:
        runs: tables of the runs that were scored.
        failed: rows ``Run, OOD dataset, Error`` of what was not.
        files: tables and figures written, in order.
        extras: by name what was asked for beside (``cert``, ``attack``, ``complexity``): a table of each run, empty of
            one that has no such thing.
    """

    runs: list[RunTables] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    extras: dict[str, list[pd.DataFrame]] = field(default_factory=dict)

    @property
    def ood(self) -> pd.DataFrame:
        """All OOD rows."""
        return all_rows([run.ood for run in self.runs])

    @property
    def clf(self) -> pd.DataFrame:
        """All classification rows."""
        return all_rows([run.clf for run in self.runs])

    def extra(self, name: str) -> pd.DataFrame:
        """All rows of an extra, none where it was not asked for."""
        return all_rows(self.extras.get(name, []))


# What a caller on a higher floor provides: how to load a run and how to build its data.
LoadRun = Callable[[Path], checkpoints.Run]
BuildData = Callable[[Mapping[str, Any]], OODDataModule]
# What makes an extra of a run: its table, and arrays for a file of their own.
Extra = Callable[[RunInfo, checkpoints.Run, OODDataModule, ScoredRun], tuple[pd.DataFrame, Mapping[str, np.ndarray]]]
# Endings of these files.
_ARRAYS = {"cert": "certified", "attack": "attacked"}


def evaluate_runs(folders: Mapping[str, Path], options: Options, load_run: LoadRun, build_data: BuildData) -> Report:
    """Score every run and write its rows before the next one is touched.

    A run that fails is logged, with a traceback unless it is a user's mistake, and listed in ``failed-<name>.csv``;
    the others are not hindered.

    Args:
        folders: name of a run (its path below the folder searched) to its folder.
        options: see :class:`Options`.
        load_run: rebuilds a run from its folder.
        build_data: data module of a run's configuration, with the OOD sets that `options` ask for.
    """
    check_entries(list(folders.values()), options.config_entries)

    def load(folder: Path) -> tuple[checkpoints.Run, OODDataModule]:
        run = load_run(folder)
        return run, build_data(_asked_for(run.fixed, options))

    members: list[Member] = []
    extras = _extras(folders, load, options)
    report = Report(extras={kind: [] for kind in extras})
    for name, folder in folders.items():
        log.info("scoring %s", name)
        with _failure_listed(report, name):
            run, data = load(folder)
            scored = score(run, data, options)
            info = _info(name, run, options)
            path = _add(report, info, run.fixed, scored, options)
            if scored.id_data.probs is not None:
                members.append(Member(info, run.fixed, path))
            for kind, make in extras.items():
                with _failure_listed(report, name):
                    table, arrays = make(info, run, data, scored)
                    report.extras[kind].append(table)
                    if arrays:
                        write_npz(_scores_folder(options) / f"{_slug(name)}.{_ARRAYS[kind]}.npz", arrays)
            if options.figures:
                figures = figures_of_scores(scored, f"{run.fixed['model']} on {info.id_dataset}")
                figures |= figures_of_method(run.method, data, f"{run.fixed['model']}, {run.fixed['dataset']}")
                _save_figures(report, name, figures, options)
        write_tables(report, options)
    if options.ensemble:
        add_ensembles(report, members, options)
    return report


def add_ensembles(report: Report, members: Sequence[Member], options: Options) -> None:
    """Score together the runs that differ only in seed, from their files, and write rows and figures as of any run."""
    alone = []
    for group in group_members(members):
        if len(group) < 2:
            alone.append(group[0].info.run)
            continue
        info, fixed = names_of(group)
        log.info("scoring %s of %s", info.run, ", ".join(member.info.run for member in group))
        with _failure_listed(report, info.run):
            scored = combine(group)
            _add(report, info, fixed, scored, options)
            if options.figures:
                figures = figures_of_scores(scored, f"{fixed['model']} on {info.id_dataset}")
                _save_figures(report, info.run, figures, options)
        write_tables(report, options)
    if alone:
        log.info("no ensemble of %s: no other run differs in its seed alone", ", ".join(alone))


def _extras(
    folders: Mapping[str, Path], load: Callable[[Path], tuple[checkpoints.Run, OODDataModule]], options: Options
) -> dict[str, Extra]:
    """What makes the extras that were asked for, by the name of their table."""
    extras: dict[str, Extra] = {}
    if options.certify is not None:
        of_certificates = options.certify
        extras["cert"] = lambda info, run, data, scored: certify_run(
            info, run.method, data, scored, of_certificates, options.device, options.max_batches
        )
    if options.attack is not None:
        extras["attack"] = Arena(folders, load, options.attack, options.device).attack_run
    if options.complexity:
        extras["complexity"] = lambda info, run, data, scored: (
            complexity_table(info, run.method, _one_batch(data, options)),
            {},
        )
    return extras


@contextmanager
def _failure_listed(report: Report, name: str) -> Iterator[None]:
    """One run's failure, of any kind, must not cost the others' results, nor its own that are there."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (see above)
        log.error("%s failed: %s", name, error, exc_info=not isinstance(error, USER_ERRORS))
        report.failed.append({"Run": name, "OOD dataset": "", "Error": _sentence(error)})


def score(run: checkpoints.Run, data: OODDataModule, options: Options) -> ScoredRun:
    """Score a loaded run on the OOD sets that were asked for.

    Raises:
        DataError: the data's splits are no longer those that the run was trained with.
    """
    data.setup("test")
    check_splits(run, data)
    reading, failed_scores = _reading(run, data, options)
    scored = score_run(
        run.method,
        data,
        _ood_names(run.fixed, options),
        id_name=_stand_in(run.fixed, options),
        device=options.device,
        max_batches=options.max_batches,
        reading=reading,
    )
    return replace(scored, failed_scores=failed_scores)


def _reading(run: checkpoints.Run, data: OODDataModule, options: Options) -> tuple[Reading | None, list[str]]:
    """What is read of every batch beside a run's own answers, if anything, and which scores could not be fitted."""
    method, device = run.method, options.device
    temperature = fit_scaling(run.path.name, method, data, device) if options.temperature_scaling else None
    scores, failed = fit_scores(scores_named(options.scores), method, data, device) if options.scores else ([], [])
    if temperature is None and not scores:
        return None, failed
    return Reading(method, temperature, scores, std_of(data).to(device)), failed


def write_tables(report: Report, options: Options) -> None:
    """Write the CSV and JSON files of what is known so far."""
    out, name = options.output_folder, options.name
    tables = {f"ood-{name}.csv": report.ood}
    if options.classification:
        tables[f"clf-{name}.csv"] = report.clf
    tables |= {f"{kind}-{name}.csv": report.extra(kind) for kind in report.extras}
    failed = out / f"failed-{name}.csv"
    if report.failed:
        tables[failed.name] = pd.DataFrame(report.failed)
    else:
        failed.unlink(missing_ok=True)  # left by an earlier evaluation of the same name
    for file, table in tables.items():
        write_csv(out / file, table)
    write_json(out / f"results-{name}.json", aggregate(report.runs))
    written = [out / file for file in [*tables, f"results-{name}.json"]]
    if options.ddu_json:
        written += _write_ddu(out / f"ddu-{name}", report)
    report.files = [*written, *(file for file in report.files if file not in written)]


def _write_ddu(folder: Path, report: Report) -> list[Path]:
    folder.mkdir(exist_ok=True)
    contents = {folder / file: content for file, content in ddu_results(report.runs).items()}
    for path, content in contents.items():
        write_json(path, content)
    return list(contents)


def _save_figures(report: Report, name: str, figures: Mapping[str, Figure], options: Options) -> None:
    folder = options.output_folder / f"figures-{options.name}" / _slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, figure in figures.items():
        plots.save_figure(figure, folder / file)
        report.files.append(folder / file)


def _ood_names(fixed: Mapping[str, Any], options: Options) -> list[str]:
    return list(options.ood_datasets) or list(fixed["test_ood_datasets"])


def _stand_in(fixed: Mapping[str, Any], options: Options) -> str | None:
    """The data set to score in place of a run's own ID test set, if it is another one.

    Raises:
        ConfigError: it is one of the OOD sets, too.
    """
    name = options.id_dataset or fixed["dataset"]
    if name in _ood_names(fixed, options):
        raise ConfigError(f"--ood-dataset: '{name}' is scored as the in-distribution set; name other OOD sets")
    return None if name == fixed["dataset"] else name


def _asked_for(fixed: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """A run's configuration with the data sets and the batch size that were asked for."""
    others = [_stand_in(fixed, options), options.attack.seeds if options.attack else None]
    names = [*_ood_names(fixed, options), *(name for name in others if name)]
    return {
        **fixed,
        "test_ood_datasets": list(dict.fromkeys(names)),
        "eval_batch_size": options.batch_size or fixed["eval_batch_size"],
    }


def _slug(name: str) -> str:
    return name.replace("/", "__")


def _info(name: str, run: checkpoints.Run, options: Options) -> RunInfo:
    fixed = run.fixed
    return RunInfo(
        model=run.path.name,
        model_type=type(run.method).__name__,
        config=fixed["model"],
        id_dataset=options.id_dataset or fixed["dataset"],
        seed=fixed["seed"],
        run=name,
        entries=entries_of(fixed, options.config_entries),
    )


def _add(report: Report, info: RunInfo, fixed: Mapping[str, Any], scored: ScoredRun, options: Options) -> Path:
    """Rows of a run or an ensemble; returns the file of its answers."""
    groups = fixed.get("ood_groups") or {}
    ood = ood_table(info, scored, groups, calibration=options.ood_calibration, scod=options.scod)
    clf = clf_table(info, scored)
    scaled = scaled_run(scored)
    if scaled is not None:
        scaled_ood = ood_table(info, scaled, groups, calibration=options.ood_calibration, scod=options.scod)
        ood = all_rows([ood, mark_ood(scaled_ood)])
        clf = all_rows([clf, mark_clf(clf_table(info, scaled), scaled.temperature)])
    report.runs.append(RunTables(fixed, ood, clf))
    for ood_name, sentence in scored.failed.items():
        report.failed.append({"Run": info.run, "OOD dataset": ood_name, "Error": sentence})
    report.failed += [{"Run": info.run, "OOD dataset": "", "Error": sentence} for sentence in scored.failed_scores]
    path = _scores_folder(options) / f"{_slug(info.run)}.npz"
    save_scores(path, scored)
    return path


def _one_batch(data: OODDataModule, options: Options) -> Tensor:
    """Of the run's own ID test set, on the method's device."""
    return next(iter(data.id_test_loader(device=options.device)))[0]


def _scores_folder(options: Options) -> Path:
    folder = options.output_folder / f"scores-{options.name}"
    folder.mkdir(exist_ok=True)
    return folder


def check_splits(run: checkpoints.Run, data: OODDataModule) -> None:
    """The data's splits are those that the run was trained with.

    Raises:
        DataError: they are not, or the run's file of splits is missing.
    """
    path = run.path / SPLITS_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing, so it cannot be told which samples the run was trained on")
    with np.load(path, allow_pickle=False) as saved:
        for split, indices in data.split_indices().items():
            if not np.array_equal(saved[split], indices):
                raise DataError(
                    f"{path}: the {split} split of '{run.fixed['dataset']}' is no longer the one the run was"
                    f" trained with; restore the data files in {run.fixed['data_root']}"
                )


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
