"""Tables that scikit-learn bundles."""

from __future__ import annotations

from collections.abc import Sequence

import sklearn.datasets
import torch
from torch import Tensor

from uncertainty_est.data.source import Part, PartitionedSource
from uncertainty_est.data.sources.shapes import fit_table

_BUNDLED = {"wine": sklearn.datasets.load_wine, "breast_cancer": sklearn.datasets.load_breast_cancer}


class BundledTable(PartitionedSource):
    """A table in its original units: ``wine`` (178 rows of 13 features) or ``breast_cancer`` (569 of 30).

    Args:
        dataset: ``"wine"`` or ``"breast_cancer"``.
        shape: ``(D,)``, the number of features that the table has.

    Raises:
        ValueError: an unknown `dataset`.
    """

    def __init__(
        self,
        dataset: str,
        shape: Sequence[int],
        split_seed: int = 1,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        classes: Sequence[int] | None = None,
        max_items: int | None = None,
    ) -> None:
        if dataset not in _BUNDLED:
            raise ValueError(f"dataset must be 'wine' or 'breast_cancer', got '{dataset}'")
        super().__init__(
            name=dataset,
            shape=shape,
            split_seed=split_seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            classes=classes,
            max_items=max_items,
        )

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        bunch = _BUNDLED[self.name]()
        return fit_table(bunch.data, self.shape, self.name), torch.as_tensor(bunch.target, dtype=torch.int64)
