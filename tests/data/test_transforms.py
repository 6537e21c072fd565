"""Scaling and augmentation: exact where pixels only move, closed forms and other libraries elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from torchvision.transforms.v2 import functional as tvf

from uncertainty_est.data.transforms import SCALINGS, ImageTransform, TableTransform, rotate, shift_and_mirror
from uncertainty_est.errors import DataError, NotFittedError


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bytes_become_minus_one_to_one_exactly() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    out = ImageTransform()(x)
    assert out.dtype == torch.float32 and out.flatten().tolist() == [-1.0, pytest.approx(-0.6, abs=1e-7), 1.0]


def test_normalisation_is_torchvisions() -> None:
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    x = images(4, 3, 8, 8)
    kept = x.clone()
    expected = tvf.normalize(tvf.to_dtype(x, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(ImageTransform(mean, std)(x), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])])
def test_normalised_images_come_back(mean: float | list[float], std: float | list[float]) -> None:
    x, transform = images(4, 3, 8, 8), ImageTransform(mean, std)
    normalised = transform(x)
    kept = normalised.clone()
    back = transform.invert(normalised)
    assert back.dtype == torch.float32 and torch.equal(normalised, kept)
    torch.testing.assert_close(back, x.float(), atol=1e-4, rtol=0)
    assert torch.equal(back.round().to(torch.uint8), x)


def test_inverted_images_are_not_clamped() -> None:
    x = torch.tensor([-3.0, 2.0]).view(2, 1, 1, 1)
    assert ImageTransform().invert(x).flatten().tolist() == [-255.0, 382.5]


@given(
    down=st.lists(st.integers(-4, 4), min_size=3, max_size=3),
    right=st.lists(st.integers(-4, 4), min_size=3, max_size=3),
    mirror=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_shift_is_a_window_of_the_reflect_padded_image(down: list[int], right: list[int], mirror: list[bool]) -> None:
    x = images(3, 2, 6, 9)
    out = shift_and_mirror(x, torch.tensor(down), torch.tensor(right), torch.tensor(mirror))
    assert out.dtype == x.dtype
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    for b in range(3):
        window = padded[b, :, 4 + down[b] : 10 + down[b], 4 + right[b] : 13 + right[b]]
        assert np.array_equal(out[b], window[:, :, ::-1] if mirror[b] else window)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_move_pixels_exactly(quarters: int) -> None:
    x = images(2, 3, 7, 7).float()
    turned = rotate(x, torch.full((2,), 90.0 * quarters))
    torch.testing.assert_close(turned, torch.rot90(x, quarters, dims=(2, 3)), atol=1e-2, rtol=0)


def test_half_a_turn_of_an_image_that_is_not_square() -> None:
    x = images(1, 1, 5, 8).float()
    torch.testing.assert_close(rotate(x, torch.tensor([180.0])), x.flip(2, 3), atol=1e-2, rtol=0)


def test_rotation_is_torchvisions_away_from_the_border_and_each_image_has_its_angle() -> None:
    x = images(3, 1, 20, 26).float()
    degrees = torch.tensor([-15.0, 7.0, 12.5])
    out = rotate(x, degrees)
    for b in range(3):
        expected = tvf.rotate(x[b], float(degrees[b]), interpolation=tvf.InterpolationMode.BILINEAR)
        torch.testing.assert_close(out[b, :, 6:14, 8:18], expected[:, 6:14, 8:18], atol=1e-2, rtol=1e-4)


def test_rotation_reflects_at_the_border_rather_than_inventing_black() -> None:
    x = torch.full((4, 1, 8, 8), 200.0)
    torch.testing.assert_close(rotate(x, torch.tensor([3.0, 30.0, 45.0, 170.0])), x)


def test_rotation_under_autocast_stays_exact() -> None:
    x, degrees = images(2, 1, 16, 16).float(), torch.tensor([10.0, -10.0])
    with torch.autocast("cpu", torch.bfloat16):
        inside = rotate(x, degrees)
    assert torch.equal(inside, rotate(x, degrees))


def test_augmentation_draws_for_each_image_and_is_determined_by_the_generator() -> None:
    x = images(1, 1, 8, 8).expand(400, -1, -1, -1)
    transform = ImageTransform(crop_padding=2, flip=True)
    out = transform.augment(x, generator())
    assert out.dtype == torch.uint8 and out.shape == x.shape
    # 5 x 5 shifts and two orientations, of one image.
    assert len(out.flatten(1).unique(dim=0)) == 50
    assert torch.equal(out, transform.augment(x, generator()))
    assert not torch.equal(out, transform.augment(x, generator(1)))


def test_flip_alone_mirrors_half_of_the_images() -> None:
    x = images(1000, 1, 2, 4)
    out = ImageTransform(flip=True).augment(x, generator())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_crop_alone_does_not_mirror() -> None:
    x = images(1, 1, 8, 8).expand(300, -1, -1, -1)
    assert len(ImageTransform(crop_padding=1).augment(x, generator()).flatten(1).unique(dim=0)) == 9


def test_rotation_augments_within_its_range_and_gives_bytes() -> None:
    x = images(1, 1, 9, 9).expand(64, -1, -1, -1)
    out = ImageTransform(rotation=20).augment(x, generator())
    assert out.dtype == torch.uint8 and len(out.flatten(1).unique(dim=0)) > 50
    assert (out[:, 0, 4, 4].int() - x[:, 0, 4, 4].int()).abs().max() <= 1  # the centre stays
    dot = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    dot[:, 0, 20, 38] = 255  # 18 pixels right of the centre, so one degree is a third of a pixel
    rows = ImageTransform(rotation=20).augment(dot, generator())[:, 0].float().sum(2).argmax(1) - 20
    assert -7 <= rows.min() <= -5 and 5 <= rows.max() <= 7


def test_without_augmentation_the_images_are_handed_through() -> None:
    x = images(3, 1, 4, 4)
    assert torch.equal(ImageTransform().augment(x, generator()), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"rotation": 200.0}, r"rotation must lie in \[0, 180\] degrees, got 200.0"),
    ],
)
def test_image_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (ImageTransform(mean=[0.1, 0.2, 0.3]), "fixed.transform.mean has 3 values for images of 1 channels"),
        (ImageTransform(crop_padding=8), "fixed.transform.crop_padding is 8, which must be less"),
    ],
)
def test_images_that_do_not_suit_the_transform(transform: ImageTransform, message: str) -> None:
    with pytest.raises(DataError, match=message):
        transform.fit(images(5, 1, 8, 8))


def test_each_transform_refuses_the_other_kind_of_data() -> None:
    with pytest.raises(DataError, match="ImageTransform takes uint8 images"):
        ImageTransform().fit(torch.zeros(5, 3))
    with pytest.raises(DataError, match="TableTransform takes float tables"):
        TableTransform().fit(images(5, 1, 8, 8))


TABLES = npst.arrays(np.float32, (17, 3), elements=st.floats(-1e3, 1e3, width=32))


@pytest.mark.parametrize(
    ("scaling", "scaler"), [("standard", StandardScaler), ("minmax", MinMaxScaler), ("robust", RobustScaler)]
)
def test_scaling_is_scikit_learns(scaling: str, scaler: type) -> None:
    rng = np.random.default_rng(0)
    train, new = (rng.lognormal(size=(200, 4)) * [1, 10, 100, 1e4] for _ in range(2))
    train, new = train.astype(np.float32), new.astype(np.float32)
    transform = TableTransform(scaling).fit(torch.from_numpy(train))
    expected = scaler().fit(train.astype(np.float64)).transform(new.astype(np.float64))
    out = transform(torch.from_numpy(new))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_asinh_is_the_robust_scaling_bent() -> None:
    rng = np.random.default_rng(0)
    train, new = (rng.standard_t(2, size=(200, 4)).astype(np.float32) for _ in range(2))
    transform = TableTransform("asinh").fit(torch.from_numpy(train))
    expected = np.arcsinh(RobustScaler().fit(train.astype(np.float64)).transform(new.astype(np.float64)))
    np.testing.assert_allclose(transform(torch.from_numpy(new)), expected, rtol=1e-4, atol=1e-5)
    quartiles = torch.quantile(torch.from_numpy(train), torch.tensor([0.25, 0.5, 0.75]), dim=0)
    middle, spread = quartiles[1], quartiles[2] - quartiles[0]
    far = transform(middle + torch.tensor([[-1e6], [-1e3], [1e3], [1e6]]) * spread)
    sides = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])
    logarithm = torch.tensor([[2e6], [2e3], [2e3], [2e6]]).log()  # asinh(z) is log(2z) far from 0
    torch.testing.assert_close(far, (sides * logarithm).expand(4, 4), atol=1e-4, rtol=1e-4)


@given(x=TABLES, scaling=st.sampled_from(SCALINGS))
def test_tables_come_back(x: np.ndarray, scaling: str) -> None:
    table = torch.from_numpy(x)
    transform = TableTransform(scaling).fit(table)
    back = transform.invert(transform(table))
    assert back.dtype == torch.float32
    # Rounding is relative to the largest values on the way: the table's, and what is added to it.
    torch.testing.assert_close(back, table, atol=2e-5 * max(1.0, float(table.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_new_rows_come_back(scaling: str) -> None:
    rng = np.random.default_rng(1)
    train, new = (torch.from_numpy(rng.standard_t(2, size=(300, 5)) * [1e-5, 1, 1, 30, 1e4]).float() for _ in range(2))
    transform = TableTransform(scaling).fit(train)
    kept = new.clone()
    torch.testing.assert_close(transform.invert(transform(255 * new)), 255 * new, atol=1e-6, rtol=1e-3)
    assert torch.equal(new, kept)


@given(x=TABLES, scaling=st.sampled_from(SCALINGS))
def test_scaled_training_data_is_finite_whatever_it_is(x: np.ndarray, scaling: str) -> None:
    out = TableTransform(scaling).fit(torch.from_numpy(x))(torch.from_numpy(x))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_is_only_shifted(scaling: str, value: float) -> None:
    x = torch.full((50, 1), value)
    transform = TableTransform(scaling).fit(x)
    expected = {"none": 1 + value, "asinh": np.arcsinh(1.0)}.get(scaling, 1.0)
    assert transform(x + 1).flatten()[0].item() == pytest.approx(expected, rel=1e-6)


def test_tables_are_not_augmented_and_must_be_fitted() -> None:
    x = torch.rand(4, 2)
    assert torch.equal(TableTransform().augment(x, generator()), x)
    for method in (TableTransform().__call__, TableTransform().invert):
        with pytest.raises(NotFittedError, match="TableTransform: call fit"):
            method(x)
    with pytest.raises(ValueError, match="scaling must be .* got 'log'"):
        TableTransform("log")
