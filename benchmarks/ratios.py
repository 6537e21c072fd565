"""Ratios with limits, the rows of docs/performance.md, and what the programs that measure them share."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Ratio:
    """One measured thing beside another.

    Attributes:
        what: is measured.
        ours: with its unit.
        rival: what it is compared with, and its figure.
        ratio: of the two.
        limit: of the ratio; ``None`` where nothing is promised.
        at_least: the ratio must be no less than the limit, and not no more.
    """

    what: str
    ours: str
    rival: str
    ratio: float
    limit: float | None = None
    at_least: bool = False

    @property
    def is_kept(self) -> bool:
        if self.limit is None:
            return True
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def in_turns(
    calls: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in every round, so that a machine that slows down slows all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return times


def ratio_of(times: dict[str, list[float]], ours: str, rival: str) -> float:
    """Median over rounds of the ratio of two calls' times."""
    return statistics.median(a / b for a, b in zip(times[ours], times[rival], strict=True))


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Appends the largest memory (bytes) that the process has had of its own inside, mapped files not counted."""
    peaks = [_own_memory()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peaks[0] = max(peaks[0], _own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def markdown(rows: Sequence[Ratio]) -> str:
    """A table of ratios."""
    lines = ["| what | ours | against | ratio | limit |", "|---|---|---|---|---|"]
    for row in rows:
        limit = "" if row.limit is None else f"{'at least' if row.at_least else 'at most'} {row.limit:g}"
        limit += "" if row.is_kept else " **missed**"
        ratio = f"{row.ratio:.3f}" if row.ratio < 10 else f"{row.ratio:.1f}"
        lines.append(f"| {row.what} | {row.ours} | {row.rival} | {ratio} | {limit} |")
    return "\n".join(lines)


def main(description: str, measure: Callable[[argparse.Namespace], list[Ratio]], *options: tuple[str, int]) -> int:
    """The command line of a program that measures ratios; returns 1 where a limit is not kept.

    Args:
        description: its docstring.
        measure: called with the options.
        options: names and defaults of whole numbers.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--json", action="store_true", help="print the rows for a program")
    arguments = parser.parse_args()
    rows = measure(arguments)
    print(json.dumps([asdict(row) for row in rows]) if arguments.json else markdown(rows))
    return 0 if all(row.is_kept for row in rows) else 1
