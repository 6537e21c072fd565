"""Noise in the data's box, and random inputs of a data set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conftest import compose_points
from uncertainty_est.building import build_data
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.evaluation.points import box, some_inputs, uniform_noise


def data_of(*overrides: str) -> OODDataModule:
    (fixed,) = compose_points(*overrides)
    data = build_data(fixed)
    data.setup("test")
    return data


def test_noise_images_fill_the_range_of_levels() -> None:
    data = data_of("dataset=digits", "model=img_ce_baseline")
    low, high = box(data)
    assert low.shape == high.shape == (1, 8, 8)
    assert (low == -1).all()
    assert (high == 1).all()
    noise = uniform_noise(data, 500)
    assert noise.shape == (500, 1, 8, 8)
    assert noise.dtype == torch.float32
    levels = data.transform.invert(noise)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float(noise.min()) == -1
    assert float(noise.max()) == 1
    # Mean and variance of the integers 0..255, within four standard errors.
    assert float(levels.mean()) == pytest.approx(127.5, abs=4 * 73.9 / 32000**0.5)
    assert float(levels.var()) == pytest.approx((256**2 - 1) / 12, rel=0.03)
    assert torch.equal(noise, uniform_noise(data, 500))
    assert not torch.equal(noise, uniform_noise(data, 500, seed=1))


@pytest.mark.parametrize("scaling", ["standard", "asinh", "none"])
def test_noise_tables_fill_each_features_range_in_raw_units(scaling: str) -> None:
    data = data_of("dataset=wine", "model=fc_ce_baseline", f"fixed.transform.scaling={scaling}")
    x = data.id_source.split("train").x
    low, high = box(data)
    torch.testing.assert_close(torch.stack([low, high]), data.transform(torch.stack([x.amin(0), x.amax(0)])))
    noise = uniform_noise(data, 4000)
    assert (noise >= low - 1e-5).all()
    assert (noise <= high + 1e-5).all()
    share = (data.transform.invert(noise) - x.amin(0)) / (x.amax(0) - x.amin(0))
    torch.testing.assert_close(share.mean(0), torch.full((13,), 0.5), atol=0.02, rtol=0)


def batches(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(size)]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_inputs_are_drawn_without_repetition_whatever_the_batch_size(size: int) -> None:
    x = torch.arange(500.0).unsqueeze(1)
    drawn = some_inputs(batches(x, size), 50)
    assert torch.equal(drawn, some_inputs(batches(x, 500), 50))
    assert len(drawn.unique()) == 50
    assert not torch.equal(drawn, some_inputs(batches(x, size), 50, seed=1))
    # From everywhere, as sets may be ordered by class: 50 of 500 with standard error 19.
    assert float(drawn.mean()) == pytest.approx(250, abs=80)
    assert torch.equal(some_inputs(batches(x, size), 900).sort(0).values, x)
