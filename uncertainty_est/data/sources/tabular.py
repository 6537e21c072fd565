"""Tables that scikit-learn bundles."""

from __future__ import annotations

from dataclasses import dataclass

import sklearn.datasets
import torch
from torch import Tensor

from uncertainty_est.data.source import PartitionedSource
from uncertainty_est.data.sources.shapes import fit_table
from uncertainty_est.own_data import Part

_BUNDLED = {"wine": sklearn.datasets.load_wine, "breast_cancer": sklearn.datasets.load_breast_cancer}


@dataclass(eq=False)
class BundledTable(PartitionedSource):
    """A table in its original units: ``wine`` (178 rows of 13 features) or ``breast_cancer`` (569 of 30).

    Args:
        dataset: ``"wine"`` or ``"breast_cancer"``.
        shape: ``(D,)``, the number of features that the table has.

    Raises:
        ValueError: an unknown `dataset`.
    """

    dataset: str

    def __post_init__(self) -> None:
        if self.dataset not in _BUNDLED:
            raise ValueError(f"dataset must be 'wine' or 'breast_cancer', got '{self.dataset}'")
        self.name = self.dataset
        super().__post_init__()

    def load(self, part: Part) -> tuple[Tensor, Tensor]:
        bunch = _BUNDLED[self.name]()
        return fit_table(bunch.data, self.shape, self.name), torch.as_tensor(bunch.target, dtype=torch.int64)
