"""A small network and a batch for the tests of the methods' arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uncertainty_est.networks.fc import FC


@pytest.fixture
def network() -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[3], num_classes=4, hidden_dims=[16, 16])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 3, generator=generator), torch.randint(4, (40,), generator=generator)
