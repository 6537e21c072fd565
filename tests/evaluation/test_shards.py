"""Parts of an evaluation, scored by processes of their own, give the tables of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CONFIGS, Trained
from uncertainty_est.errors import ConfigError
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.shards import runs_of_shard
from uncertainty_est.request import Request


def test_parts_are_the_whole_table_in_any_order_and_repeated(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("c", "a", "b"):
        shutil.copytree(trained("fc_ce_baseline").run.path, runs / name)

    def scored(out: str, **more: int) -> dict[str, str]:
        request = Request(
            output_folder=tmp_path / out,
            source_dir=CONFIGS / "source",
            checkpoint_dir=runs,
            eval_classification=True,
            no_plots=True,
            **more,  # type: ignore[arg-type]
        )
        evaluate(request)
        return {
            path.name: path.read_text()
            for path in (tmp_path / out).iterdir()
            if path.stem.endswith("-out") and path.is_file()
        }

    whole = scored("whole")
    assert {"ood-out.csv", "clf-out.csv", "results-out.json"} == whole.keys()
    first = scored("parts", shards=2, shard=1)
    assert first["ood-out.csv"] != whole["ood-out.csv"]
    assert scored("parts", shards=2, shard=0) == whole
    assert scored("parts", shards=2, shard=1) == whole
    with pytest.raises(ConfigError, match="--shard: say which"):
        scored("none", shards=2)


def test_parts_have_every_run_once_and_others_are_refused() -> None:
    folders = {str(n): Path(str(n)) for n in range(7)}
    parts = [runs_of_shard(folders, shard, 3) for shard in range(3)]
    assert sorted(name for part in parts for name in part) == list(folders)
    with pytest.raises(ConfigError, match="--shard: must be one of 0 to 2, got 3"):
        runs_of_shard(folders, 3, 3)
    with pytest.raises(ConfigError, match="--shards: 7 runs cannot be cut into 9"):
        runs_of_shard(folders, 8, 9)
