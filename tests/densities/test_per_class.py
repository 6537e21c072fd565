"""Densities side by side: stacking, and samples of the equal mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.densities.per_class import PerClass


class Bell(nn.Module):
    """A normal density about `mean` on the line."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.normal = torch.distributions.Normal(mean, 1.0)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.normal.log_prob(x).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.normal.mean + torch.randn(n, 1, generator=generator)


@pytest.mark.parametrize("means", [[1.0], [-50.0, 0.0, 50.0]])
def test_log_densities_are_stacked_by_class(means: list[float]) -> None:
    x = torch.randn(5, 1)
    log_p = PerClass([Bell(mean) for mean in means]).log_prob(x)
    assert log_p.shape == (5, len(means))
    for c, mean in enumerate(means):
        torch.testing.assert_close(log_p[:, c], torch.distributions.Normal(mean, 1.0).log_prob(x[:, 0]))


def test_samples_come_from_all_classes_in_no_order() -> None:
    density = PerClass([Bell(-50.0), Bell(0.0), Bell(50.0)])
    x = density.sample(3000, torch.Generator().manual_seed(0))
    c = (x[:, 0] / 50).round().long() + 1
    counts = torch.bincount(c, minlength=3)
    assert counts.sum() == 3000
    assert ((counts - 1000).abs() < 4 * (3000 * 2 / 9) ** 0.5).all()
    # Where classes are drawn independently, two thirds of all neighbours differ.
    changes = (c[1:] != c[:-1]).float().mean()
    assert 0.6 < changes < 0.73


def test_samples_depend_on_the_generator_alone() -> None:
    density = PerClass([Bell(-50.0), Bell(50.0)])
    before = torch.random.get_rng_state()
    first, second = (density.sample(20, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert density.sample(0, torch.Generator()).shape == (0, 1)


def test_no_density_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one density"):
        PerClass([])
