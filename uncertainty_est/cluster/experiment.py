"""What Slurm runs for SEML: one point of a grid. Its results go to the database, its files where a local run's go."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from sacred.utils import SacredInterrupt
from seml import Experiment
from seml.experiment.experiment import RescheduleInterrupt

from uncertainty_est.cli import log_to_console
from uncertainty_est.errors import Preempted
from uncertainty_est.run import run, run_point

# Logging is set up by `train`; at import, SEML would take the handlers of others away.
experiment = Experiment(logger=None)


@experiment.reschedule_hook
def leave_for_later() -> dict[str, Any]:
    """Called by SEML before the time limit: what the run goes on from is in its own folder."""
    return {}


def train(**fixed: Any) -> dict[str, Any]:
    """One run; its results are what SEML keeps.

    Raises:
        SacredInterrupt: the job was told to end; there is a checkpoint to go on from.
    """
    log_to_console()
    rescheduled: list[RescheduleInterrupt] = []

    def asked_to_leave() -> bool:
        # SEML raises at once, but all processes of a run must leave together, after the same step.
        try:
            leave_for_later()
        except RescheduleInterrupt as interrupt:
            rescheduled.append(interrupt)
        return bool(rescheduled)

    try:
        return run_point(plain(fixed), asked_to_leave)
    except Preempted as preempted:
        if rescheduled:
            raise rescheduled[0] from preempted
        raise SacredInterrupt(str(preempted)) from preempted


# Sacred passes what the signature names, and SEML refuses all other keys.
train.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
experiment.main(train)


def plain(node: Any) -> Any:
    """Sacred's read-only containers as Python's own, which YAML can write."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [plain(value) for value in node]
    return node


if __name__ == "__main__":
    experiment.run_commandline()
