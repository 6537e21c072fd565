"""Times of calls, for programs that compare two ways of doing one thing in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(
    run: Callable[[], object], repeats: int = 1, warm_up: int = 0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of one call by `clock`, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)
