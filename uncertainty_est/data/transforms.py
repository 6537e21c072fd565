"""From a source's tensors to the network's input and back, a whole batch at a time and on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.errors import DataError, NotFittedError


class ImageTransform:
    """Images to ``(x / 255 - mean) / std``, and the random shifts, flips and rotations of training.

    Args:
        mean: for each channel, or one for all, on the scale [0, 1].
        std: likewise, positive.
        crop_padding: training images are shifted by up to this many pixels each way; what was outside is
            reflected.
        flip: training images are mirrored left to right with probability 1/2.
        rotation: training images are turned by up to this many degrees each way.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        crop_padding: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
    ) -> None:
        self._mean = _per_channel(mean)
        self._std = _per_channel(std)
        if not bool((self._std > 0).all()):
            raise ValueError(f"std must be positive, got {std}")
        if crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, got {crop_padding}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must lie in [0, 180] degrees, got {rotation}")
        self.crop_padding = crop_padding
        self.flip = flip
        self.rotation = rotation

    @property
    def std(self) -> Tensor:
        """What pixels of [0, 1] are divided by, ``[1, C, 1, 1]`` or ``[1, 1, 1, 1]``."""
        return self._std

    def fit(self, x_train: Tensor) -> ImageTransform:
        """Nothing is estimated; the training images ``[N, C, H, W]`` are checked against the arguments.

        Raises:
            DataError: no uint8 images, another number of channels, or images smaller than the padding.
        """
        if x_train.dtype != torch.uint8 or x_train.ndim != 4:
            raise DataError(
                f"ImageTransform takes uint8 images, the in-distribution set has {x_train.dtype} of shape"
                f" {tuple(x_train.shape[1:])}; set fixed.transform to TableTransform"
            )
        for key, values in (("mean", self._mean), ("std", self._std)):
            if values.shape[1] not in (1, x_train.shape[1]):
                raise DataError(
                    f"fixed.transform.{key} has {values.shape[1]} values for images of {x_train.shape[1]} channels"
                )
        if self.crop_padding >= min(x_train.shape[-2:]):
            raise DataError(
                f"fixed.transform.crop_padding is {self.crop_padding}, which must be less than the images'"
                f" height and width, {tuple(x_train.shape[-2:])}"
            )
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` uint8 -> float32."""
        self._follow(x)
        return x.float().mul_(1 / (255 * self._std)).sub_(self._mean / self._std)  # two passes over the pixels

    def invert(self, x: Tensor) -> Tensor:
        """The network's input ``[B, C, H, W]`` back to levels 0..255, float32, neither rounded nor clamped."""
        self._follow(x)
        return x.float().mul(self._std).add_(self._mean).mul_(255)

    def _follow(self, x: Tensor) -> None:
        if self._mean.device != x.device:
            self._mean, self._std = self._mean.to(x.device), self._std.to(x.device)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Each image of ``[B, C, H, W]`` uint8 turned, mirrored and shifted by draws of its own.

        Args:
            x: images, not changed.
            generator: on the device of `x`.
        """
        batch = len(x)
        if self.rotation:
            draws = torch.rand(batch, generator=generator, device=x.device)
            turned = rotate(x.float(), (2 * draws - 1) * self.rotation)
            x = turned.round_().clamp_(0, 255).to(x.dtype)
        if self.crop_padding or self.flip:
            p = self.crop_padding
            shift = torch.randint(-p, p + 1, (2, batch), generator=generator, device=x.device)
            mirror = torch.rand(batch, generator=generator, device=x.device) < (0.5 if self.flip else 0.0)
            x = shift_and_mirror(x, shift[0], shift[1], mirror)
        return x


def shift_and_mirror(x: Tensor, down: Tensor, right: Tensor, mirror: Tensor) -> Tensor:
    """Windows of reflected images, pixel for pixel: ``out[b, c, i, j] = x[b, c, i + down_b, j + right_b]``.

    A mirrored window has its columns in reverse order.

    Args:
        x: ``[B, C, H, W]`` of any dtype.
        down: ``[B]`` int64, magnitude below H.
        right: ``[B]`` int64, magnitude below W.
        mirror: ``[B]`` bool, left to right.
    """
    height, width = x.shape[-2:]
    rows = _reflect(torch.arange(height, device=x.device) + down[:, None], height)
    columns = torch.arange(width, device=x.device)
    columns = torch.where(mirror[:, None], columns.flip(0), columns)
    columns = _reflect(columns + right[:, None], width)
    # One gather by flat position moves each pixel once.
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(len(x), 1, height * width)
    return x.flatten(2).gather(2, flat.expand(-1, x.shape[1], -1)).view_as(x)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Images turned counter-clockwise about their centre, bilinearly; what was outside is reflected.

    Args:
        x: ``[B, C, H, W]`` float32.
        degrees: ``[B]``.
    """
    height, width = x.shape[-2:]
    angle = (degrees * (math.pi / 180)).to(x.dtype).view(-1, 1, 1)
    cos, sin = angle.cos(), angle.sin()
    # Positions of the output's pixels from the centre, in pixels, so that images that are not square keep
    # their shape.
    i = torch.arange(height, device=x.device, dtype=x.dtype).view(1, -1, 1) - (height - 1) / 2
    j = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, -1) - (width - 1) / 2
    # Multiplied out by hand: affine_grid is a matrix product, which autocast would round to 16 bits.
    from_column = cos * (j * (2 / width)) - sin * (i * (2 / width))
    from_row = sin * (j * (2 / height)) + cos * (i * (2 / height))
    grid = torch.stack([from_column, from_row], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices outside ``0..size-1`` reflected at the first and last pixel, which are not repeated."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _per_channel(values: float | Sequence[float]) -> Tensor:
    return torch.as_tensor([values] if isinstance(values, int | float) else list(values), dtype=torch.float32).view(
        1, -1, 1, 1
    )


SCALINGS = ("standard", "minmax", "robust", "asinh", "none")


class TableTransform:
    """Features to ``z = (x - shift) / scale``, estimated on the in-distribution training split.

    ============  ================  ==========================================
    scaling       shift             scale
    ============  ================  ==========================================
    ``standard``  mean              standard deviation (dividing by N)
    ``minmax``    minimum           maximum - minimum
    ``robust``    median            third quartile - first quartile
    ``asinh``     median            third quartile - first quartile
    ``none``      0                 1
    ============  ================  ==========================================

    With ``asinh`` the result is ``asinh(z)``: like z near the median, like a logarithm far from it, for features with
    outliers of many standard deviations. A feature whose scale is 0 is only shifted (scale 1).

    Raises:
        ValueError: an unknown `scaling`.
    """

    def __init__(self, scaling: str = "standard") -> None:
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, got '{scaling}'")
        self.scaling = scaling
        self._shift: Tensor | None = None
        self._scale: Tensor | None = None

    def fit(self, x_train: Tensor) -> TableTransform:
        """Estimate shift and scale from ``[N, D]``, in float64.

        Raises:
            DataError: no float table.
        """
        if not x_train.is_floating_point() or x_train.ndim != 2:
            raise DataError(
                f"TableTransform takes float tables, the in-distribution set has {x_train.dtype} of shape"
                f" {tuple(x_train.shape[1:])}; set fixed.transform to ImageTransform"
            )
        x = x_train.double().cpu()
        low, high = x.amin(0), x.amax(0)
        if self.scaling == "standard":
            shift, scale = x.mean(0), x.std(0, correction=0)
        elif self.scaling == "minmax":
            shift, scale = low, high - low
        elif self.scaling in ("robust", "asinh"):
            quartiles = torch.from_numpy(np.quantile(x.numpy(), [0.25, 0.5, 0.75], axis=0))
            shift, scale = quartiles[1], quartiles[2] - quartiles[0]
        else:
            shift, scale = torch.zeros_like(low), torch.ones_like(low)
        # A constant feature's standard deviation is rounding noise rather than 0, and float32 overflows where a
        # feature's range is divided by next to nothing.
        smallest = (1e-30 * (high - low)).clamp(min=torch.finfo(torch.float32).tiny)
        scale = torch.where((high > low) & (scale > smallest), scale, 1.0)
        self._shift, self._scale = shift.float(), scale.float()
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, D]`` float32 -> float32.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
        """
        shift, scale = self._fitted(x.device)
        z = (x.float() - shift) / scale
        return torch.asinh(z) if self.scaling == "asinh" else z

    def invert(self, x: Tensor) -> Tensor:
        """The network's input ``[B, D]`` back to the table's own units, float32 (``asinh``: infinite beyond about 88).

        Raises:
            NotFittedError: :meth:`fit` has not been called.
        """
        shift, scale = self._fitted(x.device)
        z = torch.sinh(x.float()) if self.scaling == "asinh" else x.float()
        return z * scale + shift

    def _fitted(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._shift is None or self._scale is None:
            raise NotFittedError("TableTransform: call fit(x_train) before transforming a batch")
        if self._shift.device != device:
            self._shift, self._scale = self._shift.to(device), self._scale.to(device)
        return self._shift, self._scale

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Tables are not augmented."""
        return x
