"""Evaluate a large folder of runs in parts, by processes that know nothing of each other, into the tables of one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluation.aggregate import RunTables, aggregate
from uncertainty_est.evaluation.tables import all_rows
from uncertainty_est.files import write_csv, write_json
from uncertainty_est.run_folder import read_config


def shard_name(name: str, shard: int, shards: int) -> str:
    """What stands for ``--name`` in the files of one part."""
    return f"{name}.{shard}of{shards}"


def runs_of_shard(folders: Mapping[str, Path], shard: int, shards: int) -> dict[str, Path]:
    """Every `shards`-th run from number `shard` on: the parts have all runs, none twice.

    Raises:
        ConfigError: no such part, or an empty one.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"--shard: must be one of 0 to {shards - 1}, got {shard}")
    names = list(folders)[shard::shards]
    if not names:
        raise ConfigError(f"--shards: {len(folders)} runs cannot be cut into {shards} parts; give fewer")
    return {name: folders[name] for name in names}


def merge(output_folder: Path, name: str, shards: int, folders: Mapping[str, Path]) -> tuple[list[Path], list[int]]:
    """Put the tables of the parts together, in the order of the runs, as far as they are there.

    A function of the parts' files alone: it may be called after every part, and again.

    Args:
        output_folder: where the parts' tables are.
        name: ``--name``, without the part.
        shards: number of parts.
        folders: all runs by name, in the order of the tables.

    Returns:
        The files written, and the numbers of the parts that are not there yet.
    """
    own = re.compile(rf"(\w+)-{re.escape(name)}\.(\d+)of{shards}\.csv")
    parts: dict[str, list[pd.DataFrame]] = {}
    there = set()
    for path in sorted(output_folder.iterdir()):
        hit = own.fullmatch(path.name)
        if hit is not None:
            there.add(int(hit[2]))
            parts.setdefault(hit[1], []).append(_read(path))
    order = {run: number for number, run in enumerate(folders)}
    tables = {kind: _in_order(tables, order) for kind, tables in parts.items()}
    files = []
    for kind, table in tables.items():
        files.append(output_folder / f"{kind}-{name}.csv")
        write_csv(files[-1], table)
    if "failed" not in tables:
        (output_folder / f"failed-{name}.csv").unlink(missing_ok=True)  # left by parts that were repeated since
    files.append(output_folder / f"results-{name}.json")
    write_json(files[-1], aggregate(_tables_of_runs(tables, folders)))
    return files, sorted(set(range(shards)) - there)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)  # as text, so that no digit changes
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _in_order(tables: Sequence[pd.DataFrame], order: Mapping[str, int]) -> pd.DataFrame:
    rows = all_rows(tables)
    if not len(rows):
        return rows
    return rows.iloc[rows["Run"].map(order).argsort(kind="stable")].reset_index(drop=True)


def _tables_of_runs(tables: Mapping[str, pd.DataFrame], folders: Mapping[str, Path]) -> list[RunTables]:
    def rows(kind: str, run: str) -> pd.DataFrame:
        table = tables.get(kind, pd.DataFrame())
        if not len(table):
            return table
        own = table[table["Run"] == run]
        return own.assign(Value=own["Value"].replace("", "nan").astype(float))

    scored = set().union(
        *(set(table["Run"]) for kind, table in tables.items() if kind in ("ood", "clf") and len(table))
    )
    return [
        RunTables(read_config(folder), rows("ood", run), rows("clf", run))
        for run, folder in folders.items()
        if run in scored
    ]
