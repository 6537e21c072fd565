"""Grids through a real Slurm, and SEML's database: only where ``UNCERTAINTY_EST_TEST_CLUSTER`` says that there is one.

Its value is the folder of ``start_slurm.sh`` and ``start_mongo.sh``, which are run, or ``here`` where both answer
already.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from uncertainty_est.cluster import status

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

POINTS = [
    "dataset=gaussian2d",
    "model=fc_ddu",
    "trainer=cpu",
    "logger=none",
    "grid=seed",
    "grid.seed.options=[1,2]",
    "fixed.trainer_config.enable_progress_bar=false",
    "slurm.sbatch_options.gres=null",
    "slurm.sbatch_options.mem=512M",
    "slurm.sbatch_options.cpus-per-task=1",
    "slurm.sbatch_options.time=10",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of the commands, with a database of its own."""
    where = os.environ.get("UNCERTAINTY_EST_TEST_CLUSTER")
    if not where:
        pytest.skip("needs a cluster; set UNCERTAINTY_EST_TEST_CLUSTER (see docs/cluster.md)")
    folder = tmp_path_factory.mktemp("cluster")
    mongo = folder / "mongo"
    if where != "here":
        for command in (["start_slurm.sh"], ["start_mongo.sh", mongo]):
            if subprocess.run([Path(where) / command[0], *command[1:]], check=False).returncode:
                pytest.skip(f"{where}/{command[0]} could not start")
    if subprocess.run(["sinfo"], check=False).returncode:
        pytest.skip("Slurm does not answer")
    (folder / "seml").mkdir()
    (folder / "seml" / "mongodb.config").write_text(
        "username: \npassword: \nhost: 127.0.0.1\nport: 27017\ndatabase: uncertainty_est_test\n"
        "directConnection: 'True'\n"
    )
    yield {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "USER": getpass.getuser(),
        "XDG_CONFIG_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if where != "here":
        subprocess.run([Path(where) / "stop_mongo.sh", mongo], check=False)
        subprocess.run([Path(where) / "stop_slurm.sh"], check=False)


@pytest.fixture
def name(cluster: dict[str, str]) -> Iterator[str]:
    """Of a collection or an array that is removed afterwards."""
    name = f"test_{os.getpid()}_{time.time_ns()}"
    yield name
    subprocess.run(["scancel", f"--name={name}"], env=cluster, check=False)
    for path in (ROOT / "slurm").glob(f"{name}*"):
        subprocess.run(["rm", "-r", path], check=True)


def call(cluster: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait(found: Callable[[], Any], seconds: float = 1200) -> Any:
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)
    return result


def test_an_array_goes_on_where_a_node_was_lost(cluster: dict[str, str], name: str, tmp_path: Path) -> None:
    more = (f"seml.name={name}", f"fixed.output_folder={tmp_path}", "fixed.checkpoint_minutes=0")
    call(cluster, sys.executable, "-m", "uncertainty_est.cluster.slurm_array", *POINTS, *more, "--submit")
    folder = ROOT / "slurm" / name

    def states() -> list[str]:
        return [point.state for point in status.status_of(folder, status.slurm_queue(name))]

    wait(lambda: list(tmp_path.glob("fc_ddu-gaussian2d-seed1/resume/*.ckpt")))
    call(cluster, "scancel", "--signal=KILL", "--full", f"--name={name}")
    wait(lambda: not status.slurm_queue(name))
    # Whether the job's script could still say so is a race; the second job may not have begun.
    assert states()[0] in ("lost", "stopped") and "done" not in states()
    command = [sys.executable, "-m", "uncertainty_est.cluster.status", folder, "--retry-failed"]
    told = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 1 and "Submitted batch job" in told.stdout
    wait(lambda: states() == ["done", "done"])
    assert "resumed from" in (folder / "0.out").read_text()
    assert len(list(tmp_path.glob("fc_ddu-gaussian2d-seed?/results.json"))) == 2


def test_seml_has_the_results(cluster: dict[str, str], name: str, tmp_path: Path) -> None:
    few = ("fixed.trainer_config.max_epochs=2", f"fixed.output_folder={tmp_path}", f"seml.name={name}")
    call(cluster, sys.executable, "-m", "uncertainty_est.cluster.seml_grid", *POINTS, *few)
    call(cluster, "seml", name, "start")
    read = (
        "import json, seml.database as d;"
        f"print(json.dumps([[e['status'], e.get('result')] for e in d.get_collection('{name}').find()]))"
    )

    def ended() -> list[Any]:
        import json

        found = json.loads(call(cluster, sys.executable, "-c", read))
        return found if all(state in ("COMPLETED", "FAILED") for state, _ in found) else []

    found = wait(ended)
    assert [state for state, _ in found] == ["COMPLETED"] * 2
    for _, result in found:
        assert result["classification"]["Accuracy"] > 50 and result["ood"]
        assert (Path(result["run_dir"]) / "results.json").is_file()
    call(cluster, "seml", "drop", "-y", name)
