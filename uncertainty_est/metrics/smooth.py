"""Calibration error without bins: residuals are smoothed before they are integrated."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct, dst, rfft
from scipy.optimize import brentq

FloatArray = NDArray[np.float64]

# Spectra to try, short ones first. Powers of two, since a transform of unlucky length takes many times longer.
_FREQUENCIES = (2**9, 2**12, 2**15)
# The kernel lets nothing through, in float64, beyond 2.75 / sigma: what a spectrum of one frequency would resolve.
_RESOLVED = 2.75
_CELLS = 8  # of the grid on [0, 1], for each frequency
_TAYLOR_TERMS = 11  # (pi / 16)^11 / 11! < 1e-15


def smooth_ece(confidence: ArrayLike, correct: ArrayLike) -> float:
    r"""SmoothECE of N predictions, the fixed point :math:`\sigma_*` of the smoothed calibration error.

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 \Big| \frac1N \sum_i \tilde K_\sigma(t, f_i) (y_i - f_i) \Big|\,dt,
        \qquad \mathrm{smECE}_{\sigma_*} = \sigma_*

    with confidences :math:`f_i`, :math:`y_i = 1` where the prediction is right, and the Gaussian kernel reflected at 0
    and 1. As :math:`\mathrm{smECE}_\sigma` falls with :math:`\sigma`, there is one such bandwidth, and none to choose.

    The reflected Gaussian is the heat kernel of an interval that nothing leaves, so that it only damps cosines:
    :math:`\tilde K_\sigma(t, f) = 1 + 2 \sum_{k \ge 1} e^{-(\pi \sigma k)^2 / 2} \cos(k \pi t) \cos(k \pi f)`. All
    bandwidths therefore share one spectrum of the residuals, and the integral is a difference of antiderivatives
    between sign changes. Nothing is rounded to a grid; the result is exact to about 1e-8.

    Args:
        confidence: ``[N]`` in [0, 1], N at least 1; what rounding has put outside is brought in.
        correct: ``[N]`` of 0 and 1.

    Returns:
        A value in [0, 1], lower is better. Below 1e-4 the fixed point is not resolved, and missed by no more than that.

    Raises:
        ValueError: shapes that do not fit, no predictions, or NaN.

    References:
        Blasiok and Nakkiran, arXiv:2309.12236, Sections 3 and 4.
    """
    f, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if f.ndim != 1 or f.shape != y.shape or not f.size:
        raise ValueError(f"confidence and correct must both have shape [N], N at least 1, got {f.shape} and {y.shape}")
    if np.isnan(f).any() or np.isnan(y).any():
        raise ValueError("confidence and correct must not be NaN")
    f = f.clip(0, 1)
    residual = y - f
    largest = float(np.abs(residual).mean())  # no smoothing gives more
    if largest <= _RESOLVED / _FREQUENCIES[-1]:
        return largest
    for frequencies in _FREQUENCIES:
        bandwidth, spectrum = _RESOLVED / frequencies, _cosine_means(f, residual, frequencies)
        if _smoothed_error(bandwidth, spectrum) > bandwidth:
            return float(brentq(lambda s, c: _smoothed_error(s, c) - s, bandwidth, 2 * largest, (spectrum,), 1e-12))
    return _smoothed_error(bandwidth, spectrum)


def _cosine_means(f: FloatArray, residual: FloatArray, frequencies: int) -> FloatArray:
    """``mean_i residual_i cos(k pi f_i)`` for k from 0 to `frequencies`, to rounding.

    Transforms of the residuals at the nearest nodes of a grid, by powers of their offsets from it: the Taylor series of
    the waves around the nodes.
    """
    cells = _CELLS * frequencies
    node = np.rint(f * cells).astype(np.int64)
    offset = f * cells - node
    slope = -1j * np.pi / cells * np.arange(frequencies + 1)
    weight, factor = residual / len(f), np.ones(frequencies + 1, dtype=np.complex128)
    waves = np.zeros_like(factor)
    for power in range(1, _TAYLOR_TERMS + 1):
        waves += factor * rfft(np.bincount(node, weight, cells + 1), 2 * cells)[: frequencies + 1]
        weight, factor = weight * offset / power, factor * slope
    return waves.real


def _smoothed_error(bandwidth: float, spectrum: FloatArray) -> float:
    """``smECE_sigma`` from :func:`_cosine_means`."""
    frequencies = len(spectrum) - 1
    cells = _CELLS * frequencies
    k = np.arange(frequencies + 1)
    damped = spectrum * np.exp(-((np.pi * bandwidth * k) ** 2) / 2)
    value = dct(np.pad(damped, (0, cells - frequencies)), type=1)
    integral = np.empty(cells + 1)  # from 0 to each node
    integral[[0, -1]] = 0, 0
    integral[1:-1] = dst(np.pad(damped[1:] / (np.pi * k[1:]), (0, cells - 1 - frequencies)), type=1)
    integral += damped[0] * np.linspace(0, 1, cells + 1)

    step, left, right = np.diff(integral), value[:-1], value[1:]
    area = np.abs(step)
    crossing = np.flatnonzero(left * right < 0)
    a, b, whole = left[crossing], right[crossing], step[crossing]
    u = a / (a - b)
    # The integral up to the zero, by the cubic that has the right values and slopes at both nodes.
    first = whole * u**2 * (3 - 2 * u) + (a * u * (1 - u) ** 2 - b * u**2 * (1 - u)) / cells
    area[crossing] = np.abs(first) + np.abs(whole - first)
    return float(area.sum())
