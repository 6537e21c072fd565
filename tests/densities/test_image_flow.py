"""Whole image flows: Jacobian, inverse, total probability, samples where the density says, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.quasirandom import SobolEngine

from uncertainty_est.densities.glow import GlowFlow
from uncertainty_est.densities.image_flow import ImageFlow, halvings
from uncertainty_est.densities.real_nvp import RealNVPFlow
from uncertainty_est.errors import ConfigError

Shape = tuple[int, int, int]
Make = Callable[[Shape], ImageFlow]

SMALL: dict[str, Make] = {
    "glow": lambda shape: GlowFlow(shape, num_steps=2, hidden_channels=6, levels=4),
    "real_nvp": lambda shape: RealNVPFlow(shape, num_scales=2, num_blocks=1, hidden_channels=6, levels=4),
}
LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(params=SMALL)
def make(request: pytest.FixtureRequest) -> Make:
    torch.manual_seed(0)
    return SMALL[request.param]


def images(shape: Shape, n: int = 8, levels: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(seed)) / (levels - 1)


def moved(flow: ImageFlow, by: float = 0.1) -> ImageFlow:
    """After its first batch, with all parameters moved, in eval mode."""
    flow.train()
    flow.log_prob(images(flow.data_shape, 64))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 4)])
def test_the_log_determinant_is_that_of_the_whole_jacobian(make: Make, shape: Shape) -> None:
    flow = moved(make(shape)).double()
    v = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, log_det = flow.transform(v)
    assert z.shape == (2, math.prod(shape))
    for i in range(2):
        jacobian = torch.func.jacrev(lambda a: flow.transform(a[None])[0][0])(v[i]).reshape(z.shape[1], z.shape[1])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 4)])
def test_every_latent_has_one_image_and_every_image_one_latent(make: Make, shape: Shape) -> None:
    flow = moved(make(shape), by=0.05).double()
    v = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = flow.transform(v)[0]
    torch.testing.assert_close(flow.invert(z), v, atol=1e-8, rtol=0)
    torch.testing.assert_close(flow.transform(flow.invert(0.3 * z))[0], 0.3 * z, atol=1e-8, rtol=0)


def test_a_new_flow_is_the_base_density_of_the_logit(make: Make) -> None:
    flow = make((1, 4, 4)).double().eval()
    x = images((1, 4, 4)).double()
    y = flow.dequantize(x)
    v = torch.special.logit(0.05 + 0.9 * y)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(v)
    inner = F.softplus(v) + F.softplus(-v) - 0.10536051565782628 - math.log(4)
    torch.testing.assert_close(flow.log_prob(x), (base + inner).flatten(2).sum(2).mean(0), atol=1e-4, rtol=0)


def test_the_first_batch_changes_nothing_but_normalisation(make: Make) -> None:
    flow = make((1, 4, 4))
    flow.train()
    flow.log_prob(images((1, 4, 4), 64))
    flags = [value for name, value in flow.named_buffers() if name.endswith("initialised")]
    assert flags
    assert all(flags)


def outer_cube(n: int) -> tuple[Tensor, float]:
    """Points that fill the cube of all numbers the logit takes, four dimensions, and its volume."""
    margin = 0.05 / 0.9
    points = SobolEngine(4, scramble=True, seed=0).draw(n, dtype=torch.float64)
    return (points * (1 + 2 * margin) - margin).view(n, 1, 2, 2), (1 + 2 * margin) ** 4


def test_the_density_integrates_to_one_and_samples_fall_where_it_says(make: Make) -> None:
    n = 2**17
    flow = moved(make((1, 2, 2)), by=0.05)
    y, volume = outer_cube(n)
    # Points are spread evenly, which knows nothing of the flow.
    with torch.no_grad():
        mass = volume * flow.log_density(y.float()).double().exp() / n
        z = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
        samples = flow.logit.inverse(flow.invert(z))
    assert mass.sum().item() == pytest.approx(1.0, abs=0.01)
    assert mass.max() < 0.01, "points are too few for so sharp a density"

    def box(points: Tensor) -> Tensor:
        """0 … 15 by halves of the unit cube, 16 outside of it."""
        flat = points.flatten(1)
        halves = ((flat > 0.5).long() * torch.tensor([1, 2, 4, 8])).sum(1)
        return torch.where(((flat >= 0) & (flat <= 1)).all(1), halves, 16)

    expected = torch.zeros(17, dtype=torch.float64).index_add_(0, box(y), mass)
    share = torch.bincount(box(samples), minlength=17).double() / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((share - expected).abs() < 5 * error + 0.003).all(), (share, expected)
    assert expected[:16].max() > 1.5 * expected[:16].min(), "the flow tells the boxes apart"


def test_probabilities_of_all_images_sum_to_at_most_one(make: Make) -> None:
    flow = moved(make((1, 2, 2)), by=0.05)
    grid = torch.cartesian_prod(*[torch.arange(4) / 3] * 4).view(-1, 1, 2, 2)
    flow.dequantize.train()
    torch.manual_seed(0)
    with torch.no_grad():
        log_p = torch.stack([flow.log_prob(grid) for _ in range(64)])
        inside = flow.logit.inverse(flow.invert(torch.randn(2**15, 4)))
    mass = (((inside >= 0) & (inside <= 1)).flatten(1).all(1)).float().mean().item()
    # The average of the density over a cell's noise is the probability of the cell.
    assert log_p.logsumexp(0).sub(math.log(64)).exp().sum().item() == pytest.approx(mass, abs=0.02)
    assert log_p.mean(0).exp().sum() < mass


def test_scores_do_not_depend_on_order_or_company(make: Make) -> None:
    flow = moved(make((1, 4, 4)))
    x = images((1, 4, 4), 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    log_p = flow.log_prob(x)
    torch.testing.assert_close(flow.log_prob(x[order]), log_p[order], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(flow.log_prob(x[3:4]), log_p[3:4], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan"), float("inf")])
def test_images_outside_the_range_have_the_lowest_score_and_poison_nothing(make: Make, bad: float) -> None:
    flow = moved(make((1, 4, 4)))
    good = images((1, 4, 4), 6)
    x = good.clone()
    x[2, 0, 1, 1] = bad
    x.requires_grad_()
    log_p = flow.log_prob(x)
    assert log_p[2] == LOWEST
    others = torch.arange(6) != 2
    torch.testing.assert_close(log_p[others], flow.log_prob(good)[others], atol=1e-4, rtol=1e-5)
    log_p.div(1e30).sum().backward()
    assert x.grad is not None
    assert (x.grad[2] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


def test_gradients_reach_every_parameter(make: Make) -> None:
    flow = moved(make((1, 4, 4)))
    x = images((1, 4, 4), 16).requires_grad_()
    flow.log_prob(x).mean().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


def test_samples_are_images_of_the_generator(make: Make) -> None:
    flow = moved(make((1, 4, 4)))
    before = torch.random.get_rng_state()
    x = flow.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert x.shape == (50, 1, 4, 4)
    assert torch.equal((3 * x).round() / 3, x)
    assert 0 <= x.min() < x.max() <= 1
    assert torch.equal(flow.sample(50, torch.Generator().manual_seed(0)), x)
    assert not torch.equal(flow.sample(50, torch.Generator().manual_seed(1)), x)
    assert (flow.log_prob(x) > LOWEST).all()


def test_temperature_narrows_samples(make: Make) -> None:
    flow = moved(make((1, 4, 4)), by=0.02)
    generator = torch.Generator().manual_seed(0)
    spreads = [flow.sample(200, generator, temperature=t).std(0).mean().item() for t in (1.0, 0.5, 0.0)]
    assert spreads[0] > spreads[1] > spreads[2] == 0
    with pytest.raises(ValueError, match="temperature"):
        flow.sample(1, generator, temperature=-1.0)


def test_a_saved_flow_scores_and_trains_on_as_before(make: Make) -> None:
    flow = moved(make((1, 4, 4)))
    again = make((1, 4, 4))
    again.load_state_dict(flow.state_dict())
    again.train()
    torch.manual_seed(0)
    trained = again.log_prob(images((1, 4, 4), 3))
    flow.train()
    torch.manual_seed(0)
    assert torch.equal(flow.log_prob(images((1, 4, 4), 3)), trained)
    assert torch.equal(flow.eval().log_prob(images((1, 4, 4))), again.eval().log_prob(images((1, 4, 4))))


@pytest.mark.parametrize("shape, expected", [((1, 8, 8), 3), ((1, 28, 28), 2), ((3, 32, 32), 5), ((1, 7, 8), 0)])
def test_halvings(shape: Shape, expected: int) -> None:
    assert halvings(shape) == expected


@pytest.mark.parametrize("shape, levels", [((1, 8, 8), 3), ((1, 28, 28), 2), ((3, 32, 32), 3)])
def test_flows_take_the_images_that_there_are(shape: Shape, levels: int) -> None:
    glow = GlowFlow(shape, num_steps=1, hidden_channels=4)
    nvp = RealNVPFlow(shape, num_blocks=1, hidden_channels=4)
    assert len(glow.stages) == levels
    assert len(nvp.stages) == 2
    for flow in (glow, nvp):
        flow.eval()
        assert flow.log_prob(torch.rand(2, *shape)).shape == (2,)
        assert flow.sample(2, torch.Generator()).shape == (2, *shape)


def test_levels_and_scales_that_do_not_fit_are_refused_with_the_largest_number() -> None:
    with pytest.raises(
        ConfigError, match=r"^fixed\.model_config\.num_levels: images of 28x28 .* 2 times at most, got 3"
    ):
        GlowFlow((1, 28, 28), num_levels=3)
    with pytest.raises(ConfigError, match=r"^fixed\.data_shape: Glow needs images of even height and width, got 7x8"):
        GlowFlow((1, 7, 8))
    with pytest.raises(ConfigError, match=r"^fixed\.model_config\.num_scales: images of 28x28 allow 3 at most, got 4"):
        RealNVPFlow((1, 28, 28), num_scales=4)


@pytest.mark.parametrize("name", ["num_levels", "num_steps", "hidden_channels"])
def test_glow_refuses_numbers_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        GlowFlow((1, 8, 8), **{name: 0})


@pytest.mark.parametrize("name", ["num_scales", "num_blocks", "hidden_channels"])
def test_real_nvp_refuses_numbers_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        RealNVPFlow((1, 8, 8), **{name: 0})
