"""Points far from the data, or few of a data set's: what certificates and attacks start from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from uncertainty_est.data.module import OODDataModule

UNIFORM = "uniform noise"


def raw_box(data: OODDataModule) -> Tensor:
    """Least and greatest item, ``[2, *data_shape]``, as the in-distribution source has them.

    Images: levels 0 and 255, uint8. Tables, which have no limits of their own: of each feature, the least and the
    greatest value of the training split.

    Args:
        data: set up.
    """
    if len(data.data_shape) == 3:
        return torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, *data.data_shape).clone()
    x = data.id_source.split("train").x
    return torch.stack([x.amin(0), x.amax(0)])


def box(data: OODDataModule) -> tuple[Tensor, Tensor]:
    """:func:`raw_box` as the network's input: least and greatest, each ``[*data_shape]`` float32.

    Args:
        data: set up.
    """
    low, high = to_network(data, raw_box(data))
    return low, high


def uniform_noise(data: OODDataModule, n: int, seed: int = 0) -> Tensor:
    """Uniform draws from the data's :func:`raw_box` as the network's input, ``[n, *data_shape]`` float32.

    Images: each value one of the integers 0..255. Tables: each feature uniform over its range.

    Args:
        data: set up.
        n: how many.
        seed: of the draws.
    """
    low, high = raw_box(data)
    rng = np.random.default_rng(seed)
    shape = (n, *data.data_shape)
    if low.is_floating_point():
        draws = low + (high - low) * torch.from_numpy(rng.random(shape, dtype=np.float32))
    else:
        draws = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    return to_network(data, draws)


def some_inputs(batches: Iterable[tuple[Tensor, Tensor]], n: int, seed: int = 0) -> Tensor:
    """A random subset of a loader's inputs in random order, ``[min(n, N), *data_shape]``, on the loader's device.

    Args:
        batches: yield ``(x, y)``; only n inputs and one batch are held at a time.
        n: how many.
        seed: with the order of the inputs it decides which, whatever the batch size.
    """
    rng = np.random.default_rng(seed)
    kept: list[Tensor] = []
    keys = np.empty(0)
    for x, _ in batches:
        keys = np.concatenate([keys, rng.random(len(x))])
        order = np.argsort(keys)[:n]
        kept = [torch.cat([*kept, x])[torch.from_numpy(order).to(x.device)]]
        keys = keys[order]
    return torch.cat(kept)


def to_network(data: OODDataModule, raw: Tensor) -> Tensor:
    """In-distribution items ``[N, *data_shape]``, as their source has them, as the network's input, float32."""
    return data.transform(raw) if data.id_source.space == "raw" else raw.float()
