"""What the tables of this folder share: rows that are trained once for each seed, and the numbers of their runs."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Mean, and standard error where one was published.
Listed = Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Row:
    """One method of a table: how it is trained, and what was published of it by the name of a column."""

    label: str
    overrides: list[str]
    listed: Listed = field(default_factory=dict)
    new_splits: bool = True
    starts_from: int | None = None  # number of the row whose run of the same seed gives the first weights
    seeds: int | None = None  # in place of the call's


@dataclass(frozen=True)
class Table:
    """Rows over one data set, and the columns shown: metric, or ``OOD set / score / metric``."""

    name: str
    title: str
    dataset: str
    ood: str
    columns: list[str]
    rows: list[Row]
    needs: str | None = None  # file below the data root
    common: list[str] = field(default_factory=list)


def numbers_file(table: Table, row_number: int, seed: int, runs: str) -> Path:
    """Where the numbers of a finished run are."""
    return Path(runs) / table.name / str(row_number) / f"seed{seed}" / "numbers.json"


def train(table: Table, row_number: int, seed: int, data_root: str, runs: str) -> dict[str, Any]:
    """All numbers of one run, trained unless it is there already."""
    import torch
    from hydra import compose, initialize_config_dir

    from uncertainty_est.cli import log_to_console
    from uncertainty_est.launch import points_of
    from uncertainty_est.run import run

    torch.set_num_threads(1)
    log_to_console(logging.WARNING)
    row = table.rows[row_number]
    numbers = numbers_file(table, row_number, seed, runs)
    folder = numbers.parent
    if numbers.is_file():
        return json.loads(numbers.read_text())
    overrides = [text.format(id=table.dataset, ood=table.ood) for text in [*table.common, *row.overrides]]
    command = [
        f"dataset={table.dataset}",
        "trainer=cpu",
        "logger=none",
        *overrides,
        f"fixed.seed={seed}",
        f"fixed.split_seed={seed if row.new_splits else 1}",
        f"fixed.data_root={data_root}",
        f"fixed.output_folder={folder}",
        "fixed.trainer_config.enable_progress_bar=false",
    ]
    if row.starts_from is not None:
        first = train(table, row.starts_from, seed, data_root, runs)
        command.append(f"fixed.init_from={first['run_dir']}")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        (fixed,) = points_of(compose("config", overrides=command), ROOT / "configs" / "source")
    start = time.perf_counter()
    run_dir = run(**fixed)["run_dir"]
    result = numbers_of(run_dir) | {"run_dir": run_dir, "minutes": (time.perf_counter() - start) / 60}
    numbers.write_text(json.dumps(result))
    return result


def numbers_of(run_dir: str) -> dict[str, float]:
    """Every number of a finished run by the name of its column, in percent (Brier as published: times 100)."""
    import numpy as np
    from sklearn.metrics import average_precision_score

    from uncertainty_est import checkpoints
    from uncertainty_est.building import build_data
    from uncertainty_est.evaluation.scoring import score_run
    from uncertainty_est.evaluation.tables import results_of

    loaded = checkpoints.load(Path(run_dir))
    scored = score_run(loaded.method, build_data(loaded.fixed), loaded.fixed["test_ood_datasets"])
    if scored.failed:
        raise RuntimeError(f"{run_dir}: {scored.failed}")
    results = results_of(scored, {}, seed=loaded.fixed["seed"])
    numbers = dict(results["classification"] or {})
    for name, scores in results["ood"].items():
        numbers |= {f"{name} / {score} / {m}": v for score, metrics in scores.items() for m, v in metrics.items()}
    known = scored.id_data
    if known.probs is None:
        return numbers
    onehot = np.eye(known.probs.shape[1])[known.labels]
    numbers["Brier L2"] = float(100 * np.linalg.norm(known.probs - onehot, axis=1).mean())
    right = known.probs.argmax(1) == known.labels
    for column, score in (("alea", "max p(y|x)"), ("epist", "log max alpha")):
        if score in known.scores:
            numbers[f"Confidence APR {column}"] = float(100 * average_precision_score(right, known.scores[score]))
    return numbers


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(variance / len(values))


def with_error(values: list[float], digits: int = 1) -> str:
    """Mean ± standard error; of a single value that value alone."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if len(values) > 1 else "")


def arguments_of(description: str, tables: Iterable[Table], *, seeds: int, runs: str) -> argparse.Namespace:
    """The command line that these programs share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DATA_ROOT", "../data")))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--only", action="append", choices=[table.name for table in tables], help="repeatable")
    parser.add_argument("--finished", action="store_true", help="tell of finished runs only, train none")
    parser.add_argument("--output", type=Path, help="Markdown file (default: standard output)")
    return parser.parse_args()


def results_of_tables(
    tables: Iterable[Table], arguments: argparse.Namespace
) -> dict[str, list[list[dict[str, float]]] | None]:
    """Numbers of every run, a list over seeds for each row of each chosen table; ``None`` where data are missing."""
    os.environ["OMP_NUM_THREADS"] = "1"
    data_root, runs = str(arguments.data_root.resolve()), str(arguments.runs.resolve())
    results: dict[str, list[list[dict[str, float]]] | None] = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        pending = {}
        for table in tables:
            if arguments.only and table.name not in arguments.only:
                continue
            results[table.name] = None
            if table.needs is None or (arguments.data_root / table.needs).exists():
                pending[table.name] = [
                    [
                        pool.submit(train, table, number, seed, data_root, runs)
                        for seed in range(1, (row.seeds or arguments.seeds) + 1)
                        if not arguments.finished or numbers_file(table, number, seed, runs).is_file()
                    ]
                    for number, row in enumerate(table.rows)
                ]
        for name, rows in pending.items():
            results[name] = [[run.result() for run in row] for row in rows]
            sys.stderr.write(f"{name}: done\n")
    return results


def write(text: str, output: Path | None) -> None:
    """To the file, or to standard output."""
    if output:
        output.write_text(text)
    else:
        sys.stdout.write(text)
