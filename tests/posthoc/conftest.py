"""Features, logits and labels of a small classifier, with features that are not negative."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.posthoc.base import PosthocScore

N, D, C = 300, 12, 4


@dataclass
class Samples:
    """Of training, with a head; and a batch ``z`` to score."""

    features: Tensor
    labels: Tensor
    head: nn.Linear
    z: Tensor

    @property
    def logits(self) -> Tensor:
        return self.head(self.features).detach()

    def scores(self, score: PosthocScore) -> Tensor:
        """Of the batch, after a fit."""
        score.fit(self.features, self.logits, self.labels, self.head)
        return score.score(self.z, self.head(self.z).detach())


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % C
    mix = torch.randn(D, D, generator=generator)
    centres = torch.randn(C, D, generator=generator)

    def draw(y: Tensor) -> Tensor:
        return (torch.randn(len(y), D, generator=generator) @ mix / D**0.5 + centres[y]).relu()

    features = draw(labels)
    head = nn.Linear(D, C)
    # The least-squares classifier, whose weights would sum to 0 over the classes, and a little of another one.
    ones = torch.cat([features, torch.ones(N, 1)], 1)
    solution = torch.linalg.lstsq(ones, 4 * torch.eye(C)[labels]).solution
    with torch.no_grad():
        head.weight.copy_(solution[:-1].T + 0.3 * torch.randn(C, D, generator=generator))
        head.bias.copy_(solution[-1])
    z = torch.cat([draw(torch.arange(40) % C), 3 * torch.rand(20, D, generator=generator)])
    return Samples(features, labels, head, z)
