"""The bound on confidence in a ball: golden values, never exceeded, by chance or by search."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from tests.densities.test_spherical_mixture import some_mixture
from uncertainty_est.densities.certificate import RatioBound, confidence_bound, log_target
from uncertainty_est.densities.spherical_mixture import SphericalMixture

D, BALLS = 3, 40


def golden() -> tuple[SphericalMixture, SphericalMixture]:
    """One component each at the origin of the plane, with standard deviations 1 and 2."""
    mixtures = SphericalMixture(1, 2), SphericalMixture(1, 2)
    with torch.no_grad():
        mixtures[1].log_var.fill_(math.log(4))
        for mixture in mixtures:
            mixture.fitted.fill_(True)
    return mixtures


def some_pair(seed: int) -> tuple[SphericalMixture, SphericalMixture]:
    """Random mixtures with out-variances at least four times the in-variances."""
    inside, outside = some_mixture(5, D, seed), some_mixture(4, D, seed + 100)
    with torch.no_grad():
        outside.log_var.clamp_(min=inside.log_var.max() + math.log(4))
    return inside, outside


def balls(seed: int) -> tuple[Tensor, Tensor]:
    """Centres near and far, radii from tiny to larger than the data."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1.5, BALLS, dtype=torch.float64)[:, None]
    z = scale * torch.randn(BALLS, D, generator=generator, dtype=torch.float64)
    return z, 5 * torch.rand(BALLS, generator=generator, dtype=torch.float64) ** 2


def log_ratio(inside: SphericalMixture, outside: SphericalMixture, z: Tensor) -> Tensor:
    return inside.log_prob(z) - outside.log_prob(z)


def test_golden_values() -> None:
    bound = RatioBound(*golden(), torch.tensor([[8.0, 0.0]]))
    expected = {
        0.0: (1.510053817711634e-10, 0.5000000000755),
        0.5: (2.0405616836323305e-08, 0.5000000102028),
        1.0: (2.2860030945866887e-06, 0.5000011429989),
        2.0: (0.01634708575385627, 0.5080420783328),
    }
    for radius, (b, confidence) in expected.items():
        log_b = bound(torch.tensor([radius]))
        assert log_b.dtype == torch.float64
        assert log_b.exp().item() == pytest.approx(b, rel=1e-12)
        assert confidence_bound(log_b, 2).item() == pytest.approx(confidence, abs=1e-13)


@pytest.mark.parametrize(("classes", "b"), [(2, 1 / 9), (10, 0.011235955056179775), (100, 0.0010111223458038423)])
def test_the_target_is_where_the_bound_is_factor_over_classes(classes: int, b: float) -> None:
    target = log_target(1.1, classes)
    assert math.exp(target) == pytest.approx(b, rel=1e-12)
    assert confidence_bound(torch.tensor(target, dtype=torch.float64), classes).item() == pytest.approx(1.1 / classes)


def test_golden_radius() -> None:
    bound = RatioBound(*golden(), torch.tensor([[8.0, 0.0]]))
    radius = bound.radius(log_target(1.1, 2))
    assert radius.item() == pytest.approx(2.227756883624502, abs=1e-13)
    confidence = confidence_bound(bound(radius), 2).item()
    assert confidence == pytest.approx(0.55, abs=1e-12)


def test_radii_are_scipys_roots_and_the_bound_holds_at_them() -> None:
    z, _ = balls(0)
    target = log_target(1.1, 10)
    bound = RatioBound(*some_pair(0), z, log_scale=0.3)
    radius = bound.radius(target)
    assert (bound(radius)[radius > 0] <= target).all()
    assert 0 < (radius == 0).sum() < BALLS  # both kinds are there
    for i in range(BALLS):
        one = RatioBound(*some_pair(0), z[i : i + 1], log_scale=0.3)

        def gap(r: float, one: RatioBound = one) -> float:
            return one(torch.tensor([r], dtype=torch.float64)).item() - target

        expected = 0.0 if gap(0.0) > 0 else brentq(gap, 0, 1e4, xtol=1e-13)
        assert radius[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_radius_is_capped() -> None:
    bound = RatioBound(*golden(), torch.tensor([[1e6, 0.0]]))
    assert bound.radius(log_target(1.1, 2)).item() == 1e4


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_does_not_fall_with_the_radius(seed: int) -> None:
    bound = RatioBound(*some_pair(seed), balls(seed)[0])
    values = torch.stack([bound(torch.full((BALLS,), r)) for r in (0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0)])
    assert (values.diff(dim=0) >= 0).all()


def test_at_radius_zero_it_is_the_ratio_itself() -> None:
    inside, outside = some_pair(1)
    z, _ = balls(1)
    torch.testing.assert_close(
        RatioBound(inside, outside, z, 0.7)(torch.zeros(BALLS)), log_ratio(inside, outside, z) - 0.7
    )
    torch.testing.assert_close(RatioBound(inside, None, z, 0.7)(torch.zeros(BALLS)), inside.log_prob(z) - 0.7)


@pytest.mark.parametrize("seed", range(4))
def test_no_random_point_of_the_ball_exceeds_the_bound(seed: int) -> None:
    inside, outside = some_pair(seed)
    z, radius = balls(seed)
    direction = torch.randn(500, BALLS, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length = torch.rand(500, BALLS, 1, generator=torch.Generator().manual_seed(seed)).double() ** (1 / D)
    points = z + radius[:, None] * length * direction / direction.norm(dim=-1, keepdim=True)
    ratios = log_ratio(inside, outside, points.view(-1, D)).view(500, BALLS)
    assert (ratios <= RatioBound(inside, outside, z)(radius) + 1e-9).all()
    densities = inside.log_prob(points.view(-1, D)).view(500, BALLS)
    assert (densities <= RatioBound(inside, None, z)(radius) + 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_search_in_the_ball_exceeds_the_bound(seed: int) -> None:
    """Projected gradient ascent on the ratio, which beats its start and stays below the bound."""
    inside, outside = some_pair(seed)
    z, radius = balls(seed)
    points = z.clone()
    for _ in range(200):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(log_ratio(inside, outside, points).sum(), points)
        step = 0.05 * radius[:, None] * gradient / gradient.norm(dim=1, keepdim=True)
        offset = (points + step - z).detach()
        points = z + offset * (radius[:, None] / offset.norm(dim=1, keepdim=True)).clamp(max=1)
    start, found = log_ratio(inside, outside, z), log_ratio(inside, outside, points)
    bound = RatioBound(inside, outside, z)(radius)
    assert (found <= bound + 1e-9).all()
    assert (found - start).mean() > 1  # the search does search
    assert (bound - start).median() > (bound - found).median()


def test_with_one_component_the_bound_is_nearly_reached() -> None:
    """Towards two coinciding means the numerator's bound is tight; the denominator's is the far side's."""
    inside, outside = golden()
    z, radius = torch.tensor([[8.0, 0.0]]), torch.tensor([2.0])
    near, far = torch.tensor([[6.0, 0.0]]), torch.tensor([[10.0, 0.0]])
    expected = inside.log_prob(near) - outside.log_prob(far)
    torch.testing.assert_close(RatioBound(inside, outside, z)(radius), expected)


@pytest.mark.parametrize("factor", [1.0, 0.5, 10.0, math.nan])
def test_a_factor_out_of_range_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor must lie between 1 and the number of classes 10"):
        log_target(factor, 10)
