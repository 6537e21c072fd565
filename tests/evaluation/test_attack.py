"""The attack stays inside ball and box, never loses to its seed, and finds optima that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from uncertainty_est.densities.pca_metric import PCAMetric
from uncertainty_est.evaluation.attack import Metric, Region, attack

D = 6
EUCLIDEAN = PCAMetric(D, "none")


class Oblique:
    """A distance with axes of its own, of widths from 1 to 1000."""

    def __init__(self, d: int = D) -> None:
        generator = torch.Generator().manual_seed(1)
        rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        self.matrix = torch.logspace(0, 3, d, dtype=torch.float64)[:, None] * rotation

    def whiten(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() @ self.matrix.T

    def unwhiten(self, z: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, z.T).T


def region(n: int, radius: float | Tensor, metric: Metric, shape: tuple[int, ...] = (D,)) -> Region:
    seeds = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    low, high = torch.zeros_like(seeds), torch.ones_like(seeds)
    return Region(seeds, torch.as_tensor(radius, dtype=torch.float64).expand(n), metric, low, high)


def softmax_of(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    def log_confidence(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight.to(x) + bias.to(x)).log_softmax(-1).amax(-1)

    return log_confidence


def two_classes() -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Normal w and offset b of the margin ``w x + b`` of two classes, and their log-confidence."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(D, 2, generator=generator).double(), torch.randn(2, generator=generator).double()
    return weight[:, 0] - weight[:, 1], bias[0] - bias[1], softmax_of(weight, bias)


@pytest.mark.parametrize("metric", [EUCLIDEAN, Oblique()])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.3, 30.0])
def test_what_is_found_lies_in_ball_and_box_and_is_nowhere_below_the_seed(metric: Metric, scale: float) -> None:
    _, _, f = two_classes()
    space = region(40, scale * torch.rand(40, dtype=torch.float64), metric, (1, 2, 3))
    found = attack(f, space, steps=15, restarts=4)
    assert bool(space.contains(found.x).all())
    distance = (metric.whiten(found.x) - metric.whiten(space.seeds)).norm(dim=1)
    assert bool((distance <= space.radius).all())
    assert float(found.x.min()) >= 0
    assert float(found.x.max()) <= 1
    torch.testing.assert_close(found.log_confidence, f(found.x).double())
    assert bool((found.log_confidence >= f(space.seeds)).all())
    if scale >= 0.3:
        assert bool((found.log_confidence > f(space.seeds)).all())


def test_two_classes_in_a_ball_are_at_the_closed_forms_optimum() -> None:
    w, b, f = two_classes()
    space = region(30, 0.8, EUCLIDEAN)
    wide = Region(space.seeds, space.radius, space.metric, space.low - 9, space.high + 9)
    found = attack(f, wide, steps=200, restarts=3)
    # The margin moves by at most R |w|, in the direction of the side that the seed is on or, if nearer, the other.
    best = torch.sigmoid((wide.seeds.double() @ w + b).abs() + 0.8 * w.norm())
    torch.testing.assert_close(found.log_confidence.exp(), best, atol=1e-6, rtol=0)


def test_two_classes_in_ball_and_box_are_at_the_optimum() -> None:
    w, b, f = two_classes()
    space = region(12, 0.6, EUCLIDEAN)
    found = attack(f, space, steps=300, restarts=6)

    def largest(seed: Tensor, direction: Tensor) -> float:
        # Kuhn and Tucker: the point clip(s + t w), with t such that it is on the sphere, or in the corner.
        def point(t: float) -> Tensor:
            return (seed + t * direction).clamp(0, 1)

        reach = (point(1e3) - seed).norm()
        t = 1e3 if reach <= 0.6 else brentq(lambda t: float((point(t) - seed).norm()) - 0.6, 0, 1e3)
        return float(direction @ point(t))

    seeds = space.seeds.double()
    best = [max(largest(s, w) + float(b), largest(s, -w) - float(b)) for s in seeds]
    torch.testing.assert_close(found.log_confidence.exp(), torch.tensor(best).double().sigmoid(), atol=2e-5, rtol=0)


def test_an_oblique_ball_is_searched_to_its_rim() -> None:
    w, b, f = two_classes()
    metric = Oblique()
    space = region(10, 1e-2, metric)
    wide = Region(space.seeds, space.radius, metric, space.low - 9, space.high + 9)
    found = attack(f, wide, steps=300, restarts=2, step_size=1e-2)
    gain = 1e-2 * torch.linalg.solve(metric.matrix.T, w).norm()
    best = torch.sigmoid((wide.seeds.double() @ w + b).abs() + gain)
    torch.testing.assert_close(found.log_confidence.exp(), best, atol=1e-6, rtol=0)


def bumps(x: Tensor) -> Tensor:
    """A log-confidence with many local maxima."""
    return (7 * x.flatten(1)).sin().sum(-1) - 10


def test_more_restarts_find_no_less_and_here_more() -> None:
    space = region(20, 1.0, EUCLIDEAN)
    found = [attack(bumps, space, steps=30, restarts=n, step_size=0.05).log_confidence for n in (1, 3, 9)]
    assert bool((found[1] >= found[0]).all())
    assert bool((found[2] >= found[1]).all())
    assert float((found[2] - found[0]).mean()) > 0.1


@pytest.mark.parametrize("max_rows", [1, 7, 20, 1000])
def test_the_number_of_rows_at_once_changes_nothing(max_rows: int) -> None:
    space = region(20, 1.0, EUCLIDEAN)
    expected = attack(bumps, space, steps=10, restarts=5)
    got = attack(bumps, space, steps=10, restarts=5, max_rows=max_rows)
    torch.testing.assert_close(got.log_confidence, expected.log_confidence)
    largest: list[int] = []

    def counting(x: Tensor) -> Tensor:
        largest.append(len(x))
        return bumps(x)

    attack(counting, space, steps=1, restarts=5, max_rows=max_rows)
    assert max(largest) <= max_rows


def test_a_gradient_that_is_not_a_number_leaves_the_seed() -> None:
    space = region(5, 1.0, EUCLIDEAN)
    found = attack(lambda x: x.flatten(1).sum(-1) * math.nan, space, steps=3, restarts=2)
    assert torch.equal(found.x, space.seeds)
