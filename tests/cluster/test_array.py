"""A job array's files, what its tasks leave behind, and what is made of it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from uncertainty_est.cluster import points, slurm_array, status
from uncertainty_est.cluster.command import composed
from uncertainty_est.errors import ConfigError, Preempted

OVERRIDES = ["dataset=gaussian2d", "model=fc_ce_baseline", "grid=seed", "slurm.experiments_per_job=2"]


@pytest.fixture
def array(tmp_path: Path) -> Path:
    config, found = composed([*OVERRIDES, "slurm.sbatch_options.gres=null"])
    slurm_array.write_array(config, found, tmp_path, "some")
    return tmp_path


def test_files_of_an_array(array: Path) -> None:
    script = (array / "job.sh").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=some\n#SBATCH --array=0-2\n")
    assert "#SBATCH --requeue\n" in script and "#SBATCH --signal=B:USR1@120\n" in script and "gres" not in script
    command = script.splitlines()[-1].replace("$SLURM_ARRAY_TASK_ID", "2")
    called = points.parser().parse_args(shlex.split(command)[4:])
    assert (called.folder, called.per_job, called.task) == (array, 2, 2)
    settings = [yaml.safe_load(path.read_text()) for path in sorted(array.glob("points/*.yaml"))]
    assert settings == [point | {"resume": "auto"} for point in composed(OVERRIDES)[1]]
    config, others = composed([*OVERRIDES, "fixed.batch_size=7"])
    with pytest.raises(ConfigError, match="holds other points"):
        slurm_array.write_array(config, others, array, "some")


def test_every_end_of_a_point_is_told(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: dict[int, Any] = {0: {"run_dir": "runs/a"}, 1: ValueError("no\nsuch thing"), 2: Preempted("told to end")}

    def run(**fixed: Any) -> dict[str, Any]:
        end = ends[number]
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr("uncertainty_est.run.run", run)
    codes = []
    for number in ends:
        try:
            points.run_one(array, number)
            codes.append(0)
        except SystemExit as end:
            codes.append(end.code)
    assert codes == [0, 1, 75]
    points.write_json(points.state_file(array, 3), {"state": "running"})

    def told(queue: set[tuple[str, str]] | None) -> list[tuple[str, str]]:
        return [(point.state, point.detail) for point in status.status_of(array, queue)]

    failed, stopped = ("failed", "ValueError: no such thing"), ("stopped", "told to end")
    assert told(set()) == [("done", "runs/a"), failed, stopped, ("lost", ""), ("missing", "")]
    assert told({("7", "1")})[2:] == [("waiting", "told to end"), ("running", ""), ("missing", "")]
    assert told(None)[3] == ("running", "")
    sent: list[list[int] | None] = []
    monkeypatch.setattr(status, "submit", lambda script, tasks=None: sent.append(tasks) or "ok")
    assert status.retry(array, status.status_of(array, set())) == "ok" and sent == [[0, 1, 2]]


def test_a_task_hands_signals_on_and_asks_to_be_sent_again(tmp_path: Path) -> None:
    """With points and ``scontrol`` that are scripts: the first leaves on the warning, the second ends by itself."""
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "python").write_text(
        "#!/bin/bash\nif [ $5 = 0 ]; then trap 'exit 75' USR1; touch $3/ready; while :; do sleep 0.05; done; fi\n"
    )
    (tmp_path / "python").chmod(0o755)
    task = (
        "import sys, os, signal, threading, time, pathlib\n"
        "from uncertainty_est.cluster import points\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "sys.executable = str(folder / 'python')\n"
        "def warn():\n"
        "    while not (folder / 'ready').exists(): time.sleep(0.02)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "threading.Thread(target=warn).start()\n"
        "raise SystemExit(points.run_tasks(folder, [0, 1]))\n"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run([sys.executable, "-c", task], env=environment, cwd=slurm_array.ROOT, check=False, timeout=60)
    assert done.returncode == 75
    assert (tmp_path / "asked").read_text() == "requeue 17_3\n"


def test_no_slurm_and_no_array_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is no job array"):
        status.status_of(tmp_path, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no sbatch on this machine; on the cluster: sbatch --array=1,2 job\.sh"):
        slurm_array.submit(Path("job.sh"), [1, 2])
    assert status.slurm_queue("some") is None
