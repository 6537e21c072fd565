"""A run that was interrupted ends as if it had not been, to the bit; damaged checkpoints give way to earlier ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.conftest import compose_points, quick_overrides
from tests.processes import Command, in_two_processes
from uncertainty_est import checkpoints, resume
from uncertainty_est.data.loader import JointLoader, TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.errors import ConfigError, Preempted
from uncertainty_est.run import run

Data = Callable[[str], Path]
FEW = ("fixed.trainer_config.max_epochs=3",)


class LostError(Exception):
    """The node is gone."""


def point(model: str, small_data: Data, out: Path, *more: str, trainer: str = "cpu") -> dict[str, Any]:
    (fixed,) = compose_points(*quick_overrides(model, small_data(model.split("_")[0]), out, trainer), *more)
    return fixed


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_weights(Path(folder))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the process raise in its n-th training step from now on, once; and time pass a minute a look."""
    minutes = iter(range(10**6))
    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    left = [-1]
    taken = resume.Resume.on_train_batch_start

    def on_train_batch_start(self: resume.Resume, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise LostError
        taken(self, *arguments)

    monkeypatch.setattr(resume.Resume, "on_train_batch_start", on_train_batch_start)
    return lambda n: left.__setitem__(0, n)


# One for each kind of state beside weights: augmentation and best weights; replay buffer; three optimizers with turns
# of their own; a flow's turns; outliers that go round.
KINDS = ["img_ce_baseline", "fc_mcmc", "fc_vera", "fc_flow_contrastive", "fc_energy_finetuning_oe"]


@pytest.mark.parametrize("model", KINDS)
def test_a_lost_run_ends_as_if_nothing_had_happened(
    model: str, small_data: Data, tmp_path: Path, lose: Callable[[int], None]
) -> None:
    whole = run(**point(model, small_data, tmp_path / "whole", *FEW))
    fixed = point(model, small_data, tmp_path / "lost", *FEW, "fixed.resume=auto", "fixed.checkpoint_minutes=3")
    for n in (6, 9):  # the second time it was resumed itself
        lose(n)
        with pytest.raises(LostError):
            run(**fixed)
    lose(-1)
    resumed = run(**fixed)
    assert_same(weights(resumed["run_dir"]), weights(whole["run_dir"]))
    folder = Path(resumed["run_dir"])
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == [folder.name]
    assert not (folder / "resume").exists()
    logged = [path.read_text() for path in sorted((folder / "logs").glob("metrics*.csv"))]
    assert len(logged) > 1 and all(logged), "what the lost parts logged is kept"
    del whole["run_dir"], resumed["run_dir"]
    assert resumed == whole


def test_a_finished_run_is_not_run_again(small_data: Data, tmp_path: Path) -> None:
    fixed = point("fc_ce_baseline", small_data, tmp_path, "fixed.resume=auto", "fixed.trainer_config.max_epochs=1")
    first = run(**fixed)
    written = (Path(first["run_dir"]) / "checkpoint.pt").stat().st_mtime_ns
    assert run(**fixed) == first
    assert (Path(first["run_dir"]) / "checkpoint.pt").stat().st_mtime_ns == written
    other = run(**fixed | {"batch_size": 64})
    assert other["run_dir"] != first["run_dir"], "other settings are another run"


def test_two_processes_do_not_go_on_with_one_run(small_data: Data, tmp_path: Path, lose: Callable[[int], None]) -> None:
    fixed = point("fc_ce_baseline", small_data, tmp_path, *FEW, "fixed.resume=auto", "fixed.checkpoint_minutes=3")
    lose(6)
    with pytest.raises(LostError):
        run(**fixed)
    (folder,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    with (
        resume.sole_process(folder),
        pytest.raises(ConfigError, match=r"fixed\.resume: another process is at work on .*; wait for it, or end it"),
    ):
        run(**fixed)
    lose(-1)
    assert run(**fixed)["run_dir"] == str(folder), "what was interrupted holds nothing any more"


def test_early_stopping_stays_stopped_and_max_steps_are_no_trap(
    small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost between training and the end: only what comes after training is done again, from the same weights."""
    monkeypatch.setattr(resume.Resume, "on_train_batch_end", lambda *_: None)  # ends of epochs only
    stop = (
        "fixed.trainer_config.max_steps=100",
        "fixed.earlystop_config.patience=1",
        "+fixed.earlystop_config.min_delta=9",
    )
    whole = run(**point("fc_ce_baseline", small_data, tmp_path / "whole", *stop))
    fixed = point(
        "fc_ce_baseline", small_data, tmp_path / "lost", *stop, "fixed.resume=auto", "fixed.checkpoint_minutes=0"
    )
    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "on_train_end", lambda *_: (_ for _ in ()).throw(LostError()))
        with pytest.raises(LostError):
            run(**fixed)
    steps: list[int] = []
    monkeypatch.setattr(resume.Resume, "on_train_batch_start", lambda *_: steps.append(1))
    assert_same(weights(run(**fixed)["run_dir"]), weights(whole["run_dir"]))
    assert not steps


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    small_data: Data, tmp_path: Path, lose: Callable[[int], None]
) -> None:
    whole = run(**point("fc_ce_baseline", small_data, tmp_path / "whole", *FEW))
    fixed = point("fc_ce_baseline", small_data, tmp_path, *FEW, "fixed.resume=auto", "fixed.checkpoint_minutes=1")
    lose(7)
    with pytest.raises(LostError):
        run(**fixed)
    (folder,) = tmp_path.glob("*/resume")
    before, last = sorted(folder.glob("*.ckpt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit in the midst of a tensor
    last.write_bytes(content)
    assert resume.last_checkpoint(folder.parent) == before
    lose(-1)
    assert_same(weights(run(**fixed)["run_dir"]), weights(whole["run_dir"]))
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "000000001.ckpt").write_bytes(bytes(content[:1000]))
    assert resume.last_checkpoint(tmp_path) is None


def test_being_told_to_leave_leaves_a_checkpoint(small_data: Data, tmp_path: Path) -> None:
    from uncertainty_est.run import run_point

    whole = run(**point("fc_ce_baseline", small_data, tmp_path / "whole", *FEW))
    fixed = point("fc_ce_baseline", small_data, tmp_path, *FEW, "fixed.resume=auto", "fixed.checkpoint_minutes=60")
    with pytest.raises(Preempted) as left:
        run_point(dict(fixed), lambda: True)
    assert left.value.code == 75 and len(list(tmp_path.glob("*/resume/*.ckpt"))) == 1
    assert_same(weights(run(**fixed)["run_dir"]), weights(whole["run_dir"]))


@pytest.mark.slow
def test_signals_end_a_process_that_goes_on_later(small_data: Data, tmp_path: Path) -> None:
    """SIGTERM in time, SIGKILL without: the same command twice, and its settings a third time, here."""
    more = ("fixed.trainer_config.max_epochs=8", "fixed.resume=auto", "fixed.checkpoint_minutes=0")
    overrides = [*quick_overrides("fc_ddu", small_data("fc"), tmp_path), *more]
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        seen = set(tmp_path.glob("*/resume/*.ckpt"))
        process = Command(["train_local.py", *overrides])
        while process.running and len(set(tmp_path.glob("*/resume/*.ckpt")) - seen) < 2:
            time.sleep(0.02)
        process.send(number)
        assert process.wait().returncode == code
    (fixed,) = compose_points(*overrides)
    whole = run(**fixed | {"output_folder": str(tmp_path / "whole"), "resume": None, "checkpoint_minutes": None})
    resumed = run(**fixed)
    assert [path.name for path in tmp_path.glob("fc_ddu*")] == [Path(resumed["run_dir"]).name]
    assert_same(weights(resumed["run_dir"]), weights(whole["run_dir"]))


def run_as_one_of_two(rank: int, fixed: dict[str, Any], killed_at: int | None) -> None:
    def on_train_batch_start(self: resume.Resume, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    resume.Resume.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]  # in this process
    run(**fixed)


def test_two_processes_with_chains_of_their_own_go_on(small_data: Data, tmp_path: Path) -> None:
    """Lost five steps after a checkpoint in the midst of an epoch; gradients are means over the chains of both."""
    more = ("fixed.batch_size=16", "fixed.trainer_config.max_epochs=2")

    def jem(out: Path, *resumed: str) -> dict[str, Any]:
        return point("fc_mcmc_supervised", small_data, out, *more, *resumed, trainer="ddp_cpu")

    assert in_two_processes(run_as_one_of_two, tmp_path, jem(tmp_path / "whole"), None) == [0, 0]
    fixed = jem(tmp_path / "lost", "fixed.resume=auto", "fixed.checkpoint_minutes=0")
    assert in_two_processes(run_as_one_of_two, tmp_path, fixed, 25) == [-signal.SIGKILL] * 2
    kept = [path.name for path in sorted((tmp_path / "lost").glob("*/resume/*.ckpt"))]
    assert kept == ["000000010.ckpt", "000000020.ckpt"]
    assert in_two_processes(run_as_one_of_two, tmp_path, fixed, None) == [0, 0]
    (whole,), (lost,) = (list((tmp_path / name).glob("fc_*")) for name in ("whole", "lost"))
    assert_same(weights(lost), weights(whole))


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    callback = resume.Resume(tmp_path, resume.Resumption(1.0), SimpleNamespace())  # type: ignore[arg-type]
    state = {"resume": {"processes": [{}, {}]}}
    with pytest.raises(ConfigError, match="fixed.resume: .* has 2 processes, now there are 1"):
        callback.on_load_checkpoint(SimpleNamespace(world_size=1), None, state)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 8, 9])
def test_loaders_go_on_in_the_midst_of_an_epoch(after: int) -> None:
    """With augmentation and outliers that go round at their own pace."""

    class Noise:
        def augment(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return x + torch.rand(x.shape, generator=generator)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def loader(n: int, seed: int) -> TensorLoader:
        split = Split(torch.arange(float(n))[:, None], torch.arange(n), torch.arange(n), "train")
        return TensorLoader(split, 2, transform=Noise(), augment=True, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def stream(joint: JointLoader) -> Any:
        for _ in range(3):
            yield from joint

    joint = JointLoader(loader(8, 1), loader(6, 2))
    batches = stream(joint)
    for _ in range(after):
        next(batches)
    if after % 4 == 0:
        joint.end_epoch()  # as at the end of every epoch of training
    state = joint.state_dict()
    rest = list(batches)
    again = JointLoader(loader(8, 1), loader(6, 2))
    again.load_state_dict(state)
    iter(again)  # Lightning makes iterators that it does not use
    others = [batch for _ in range(3) for batch in again][: len(rest)]
    assert len(rest) == 12 - after == len(others)
    for a, b in zip(rest, others, strict=True):
        assert all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
