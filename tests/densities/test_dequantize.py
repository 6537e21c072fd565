"""Grey levels to cells of [0, 1] and back; noise in training, the same numbers in eval mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from uncertainty_est.data.sources.image import Digits
from uncertainty_est.densities.dequantize import Dequantize


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("training", [True, False])
def test_every_level_stays_in_its_cell(levels: int, training: bool) -> None:
    x = (torch.arange(levels) / (levels - 1)).view(levels, 1, 1, 1).expand(-1, 1, 4, 4)
    dequantize = Dequantize((1, 4, 4), levels).train(training)
    y = dequantize(x)
    assert y.shape == (1 if training else 2, *x.shape)
    assert torch.equal((y * levels).floor(), (x * (levels - 1)).round().expand_as(y))
    torch.testing.assert_close(dequantize.inverse(y), x.expand_as(y))


def test_the_bundled_digits_have_the_levels_that_they_were_stored_from() -> None:
    stored = Digits(shape=[1, 8, 8], split_seed=1).split("train").x
    (y,) = Dequantize((1, 8, 8), 17)(stored.float() / 255)
    assert torch.equal((y * 17).floor(), (stored * (16 / 255)).round())


def test_training_noise_is_uniform_over_the_cell() -> None:
    torch.manual_seed(0)
    y = Dequantize((1, 100, 100), 4)(torch.full((1, 1, 100, 100), 2 / 3))
    assert stats.kstest((4 * y - 2).flatten().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_scoring_noise_is_always_the_same_and_visits_all_of_the_cell(draws: int) -> None:
    dequantize = Dequantize((1, 100, 100), 4, draws).eval()
    x = torch.zeros(2, 1, 100, 100)
    before = torch.random.get_rng_state()
    y = dequantize(x)
    assert y.shape == (draws, *x.shape)
    assert torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(y, Dequantize((1, 100, 100), 4, draws).eval()(x))
    assert torch.equal(torch.random.get_rng_state(), before)
    for u in 4 * y[:, 0]:
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    parts = (4 * draws * y[:, 0]).floor().sort(0).values
    assert torch.equal(parts, torch.arange(draws).view(-1, 1, 1, 1).expand_as(parts).float())


def test_the_average_over_noise_bounds_the_log_probability_and_the_middle_of_the_cell_does_not() -> None:
    """A bump in the middle of the one cell of interest: why 1/2 is no number to score with."""
    u = np.linspace(0.0005, 0.9995, 1000)
    density = stats.beta(5, 5).pdf(u)
    log_p = np.log(density.mean())
    assert np.log(density).mean() < log_p
    assert np.log(stats.beta(5, 5).pdf(0.5)) > log_p + 0.5


def test_gradients_are_those_of_the_line_through_the_levels() -> None:
    x = torch.rand(2, 1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(Dequantize((1, 3, 3), 17)(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 16 / 17))


def test_numbers_outside_of_all_cells_become_the_nearest_level() -> None:
    y = torch.tensor([-0.05, 0.0, 1.0, 1.05])
    assert torch.equal(Dequantize((1, 1, 4), 17).inverse(y), torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_one_level_is_refused() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Dequantize((1, 2, 2), 1)


def test_no_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="scoring_draws must be at least 1, got 0"):
        Dequantize((1, 2, 2), 4, 0)
