"""Random numbers of one process of several."""

from __future__ import annotations

import numpy as np
import torch


def rank_generator(device: torch.device | str, rank: int) -> torch.Generator:
    """A generator that the global seed and the process's rank decide.

    All processes of a run have the same global seed, so that their chains would all be the same.

    Args:
        device: of the numbers.
        rank: number of this process.
    """
    seed = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) % 2**63)
