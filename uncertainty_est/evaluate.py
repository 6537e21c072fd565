"""What ``evaluate.py`` asks for, in terms of runs and data modules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.config import as_dict
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data_names import inline_sources
from uncertainty_est.errors import ConfigError, first_line
from uncertainty_est.evaluation.adversarial import AttackOptions
from uncertainty_est.evaluation.certify import CertifyOptions
from uncertainty_est.evaluation.report import Options, Report, evaluate_runs
from uncertainty_est.evaluation.shards import merge, runs_of_shard, shard_name
from uncertainty_est.files import make_folder
from uncertainty_est.posthoc.base import scores_named
from uncertainty_est.request import Request
from uncertainty_est.run_folder import run_folder
from uncertainty_est.settings import check_ood_sets

log = logging.getLogger(__name__)

_CERTIFIED = "Certified balls: no class gets more than 1.1 / C in them (percent; radii in the run's own metric)"
_ATTACKED = "Confidence on noise, before and after an attack in the same balls for all runs, percent"


def evaluate(request: Request) -> Report:
    """Find the runs, score them, write tables and figures.

    Raises:
        ConfigError: no run, no such device or score, or an output folder that cannot be written.
    """
    folders = request.folders
    name, runs = request.name, folders
    if request.shards is not None:
        name, runs = _shard(request, folders)
    scores_named(request.scores)  # a slip of the pen is told before anything is scored
    options = Options(
        output_folder=make_folder(request.output_folder, "--output-folder"),
        name=name,
        id_dataset=request.dataset,
        ood_datasets=request.ood_dataset,
        classification=request.eval_classification,
        ood_calibration=request.eval_ood_calibration,
        scod=request.eval_scod,
        complexity=request.complexity,
        ensemble=request.ensemble,
        ddu_json=request.ddu_json,
        max_batches=request.max_eval,
        config_entries=request.config_entries,
        batch_size=request.batch_size,
        device=device_of(request.device),
        figures=not request.no_plots,
        temperature_scaling=request.temperature_scaling,
        scores=request.scores,
        certify=_certify_options(request) if request.certify else None,
        attack=_attack_options(request) if request.attack else None,
    )

    def data_of(fixed: Mapping[str, Any]) -> OODDataModule:
        return build_data(with_sources(fixed, request.source_dir), own_only=True)

    report = evaluate_runs(runs, options, checkpoints.load, data_of)
    if request.shards is not None:
        files, missing = merge(options.output_folder, request.name, request.shards, folders)
        report.files += files
        if missing:
            log.info("parts that are not scored yet: %s", ", ".join(map(str, missing)))
    return report


def _shard(request: Request, folders: Mapping[str, Path]) -> tuple[str, dict[str, Path]]:
    """The name of one part's files, and its runs.

    Raises:
        ConfigError: no such part, or what needs all runs at once is asked for.
    """
    if request.shard is None or request.shards is None:
        raise ConfigError("--shard: say which of the --shards to score")
    balls_are_given = request.attack_radius is not None or request.attack_balls is not None
    if request.ensemble or request.ddu_json or (request.attack and not balls_are_given):
        raise ConfigError(
            "--shards: --ensemble, --ddu-json and the first certified balls for --attack need all runs at once;"
            " evaluate without --shards, or give --attack-balls or --attack-radius"
        )
    return (
        shard_name(request.name, request.shard, request.shards),
        runs_of_shard(folders, request.shard, request.shards),
    )


def with_sources(fixed: Mapping[str, Any], source_dir: Path) -> dict[str, Any]:
    """A saved `fixed` in which data sets that were named only now are described as well.

    Raises:
        ConfigError: an unknown data set, or one that the run was tuned or trained on.
    """
    # What the run saved wins: OmegaConf would merge our file under it, and the run must be judged as it was trained.
    config = OmegaConf.create({"fixed": {key: fixed[key] for key in ("data_root", "data_shape", "split_seed")}})
    new = [name for name in fixed["test_ood_datasets"] if name not in fixed["sources"]]
    inline_sources(config.fixed, source_dir, new, own=fixed["dataset"])
    # Sets that are made of the in-distribution set are made of the one that the run was trained on.
    own = {"dataset": fixed["dataset"], "sources": {fixed["dataset"]: fixed["sources"][fixed["dataset"]]}}
    OmegaConf.update(config, "fixed", own, force_add=True)
    added = as_dict(OmegaConf.to_container(config.fixed, resolve=True))
    complete = dict(fixed) | {"sources": {**added.get("sources", {}), **fixed["sources"]}}
    check_ood_sets(complete)
    return complete


def summary(report: Report) -> str:
    """The headline score's AUROC and FPR95 of every run and OOD set, the accuracy, and where the files are."""
    lines: list[str] = []
    if len(report.ood):
        headline = report.ood[report.ood["Headline"] & report.ood["Metric"].isin(["AUROC", "FPR95"])]
        table = headline.pivot_table(
            index=["Run", "Score"], columns=["Metric", "OOD dataset"], values="Value", sort=False
        )
        for metric in ("AUROC", "FPR95"):
            part = table[metric].reset_index(level="Score")
            if len(report.clf):
                accuracy = report.clf[report.clf["Metric"] == "Accuracy"].set_index("Run")["Value"]
                part.insert(1, "Accuracy", accuracy.reindex(part.index))
            text = part.to_string(float_format=lambda v: f"{v:.2f}")
            lines += [
                f"{metric} of the headline score, percent (higher score = more in-distribution)",
                text,
                "",
            ]
    elif len(report.clf):
        accuracy_rows: pd.DataFrame = report.clf[report.clf["Metric"] == "Accuracy"]
        lines += [accuracy_rows[["Run", "Metric", "Value"]].to_string(index=False), ""]
    if len(cert := report.extra("cert")):
        in_balls = cert[cert["Radius"].isna()]
        lines += _block(_CERTIFIED, in_balls, ["Certified fraction", "Certified radius (median)", "Guaranteed AUROC"])
    if len(attack := report.extra("attack")):
        lines += _block(_ATTACKED, attack, ["MMC", "Success rate", "AUROC"])
    lines += [f"not scored: {row['Run']} {row['OOD dataset']}: {row['Error']}" for row in report.failed]
    tables = [file for file in report.files if file.suffix in (".csv", ".json")]
    figures = sorted({file.parent for file in report.files if file.suffix == ".png"})
    lines += [f"table    {file}" for file in tables]
    lines += [f"figures  {folder}/" for folder in figures]
    return "\n".join(lines)


def _block(title: str, rows: pd.DataFrame, metrics: list[str]) -> list[str]:
    """Some metrics side by side, a line for each run and set of points."""
    chosen = rows[rows["Metric"].isin(metrics)]
    table = chosen.pivot_table(index=["Run", "OOD dataset"], columns="Metric", values="Value", sort=False)
    return [title, table[metrics].to_string(float_format=lambda v: f"{v:.2f}"), ""]


def _certify_options(request: Request) -> CertifyOptions:
    options = CertifyOptions(points=request.certify_points)
    return replace(options, radii=sorted(set(request.certify_radius))) if request.certify_radius else options


def _attack_options(request: Request) -> AttackOptions:
    return AttackOptions(
        balls=run_folder(request.attack_balls) if request.attack_balls else None,
        radius=request.attack_radius,
        seeds=request.attack_seeds,
        points=request.attack_points,
        steps=request.attack_steps,
        restarts=request.attack_restarts,
    )


def device_of(name: str) -> str:
    """The device that the option ``--device`` means; ``auto`` is the first GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {first_line(error)}") from error
    return name
