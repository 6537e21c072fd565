"""Settings of a score that are chosen on validation sets: by how well it tells data from outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from uncertainty_est.metrics.ood import auroc, rank_scores, sorted_scores
from uncertainty_est.models.base import Method, scoring_mode

Loader = Iterable[tuple[Tensor, Tensor]]
# As many inputs of each set are enough to choose by.
MAX_ITEMS = 1000


def candidates(values: float | Sequence[float] | None, published: Sequence[float]) -> list[float]:
    """What is chosen from: a single number, a list, or without either the paper's list."""
    if values is None:
        return list(published)
    return [float(value) for value in (values if isinstance(values, Sequence) else [values])]


def collect(score: Callable[[Tensor], Tensor], loader: Loader, max_items: int = MAX_ITEMS) -> Tensor:
    """``score(x)`` of the first inputs, at most `max_items`, on the CPU.

    Args:
        score: ``[B, *data_shape] -> [B, ...]``.
        loader: yields ``(x, y)``.
        max_items: how many inputs at most.
    """
    parts, left = [], max_items
    for x, _ in loader:
        parts.append(score(x[:left]))
        left -= len(parts[-1])
        if left <= 0:
            break
    return torch.cat(parts).cpu()


def mean_auroc(known: Tensor, unknown: Mapping[str, Tensor]) -> Tensor:
    """AUROC of every setting, averaged over the sets of outliers, ``[S]`` float64.

    Args:
        known: scores of data, ``[N, S]``, higher = more in-distribution.
        unknown: scores of each set of outliers, ``[M, S]``.
    """
    columns = [sorted_scores(column, "known") for column in known.T.numpy()]
    values = [
        [
            auroc(rank_scores(ascending, sorted_scores(column, name)))
            for ascending, column in zip(columns, scores.T.numpy(), strict=True)
        ]
        for name, scores in unknown.items()
    ]
    return torch.tensor(values, dtype=torch.float64).mean(0)


def choose(
    method: Method, scores: Callable[[Tensor], Tensor], loader: Loader, ood_loaders: Mapping[str, Loader]
) -> tuple[int, float]:
    """Index of the setting with the largest :func:`mean_auroc`, the first of equal ones, and that AUROC.

    Args:
        method: in scoring mode while `scores` is called.
        scores: with every setting, ``[B, *data_shape] -> [B, S]``, higher = more in-distribution.
        loader: of data, see :meth:`Method.tune`.
        ood_loaders: of outliers, likewise.
    """
    with scoring_mode(method):
        known = collect(scores, loader)
        unknown = {name: collect(scores, ood_loader) for name, ood_loader in ood_loaders.items()}
    aurocs = mean_auroc(known, unknown)
    best = int(aurocs.argmax())
    return best, float(aurocs[best])
