"""What it costs to keep a method and to ask it: parameters and floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from uncertainty_est.evaluation.tables import RunInfo
from uncertainty_est.models.base import Method


class Counter(TorchDispatchMode):
    """Adds up PyTorch's formulas of what runs inside.

    ``FlopCounterMode`` also keeps track of modules, by hooks that forbid ``autograd.grad`` inside, which scores take.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def complexity(method: Method, x: Tensor) -> dict[str, int]:
    """Sizes of a method, and the operations that all its answers on one input take.

    - ``Parameters``: numbers in all parameters, those that only training uses (a generator) among them.
    - ``Buffers``: numbers in all buffers: running statistics, fitted densities, replay buffers.
    - ``FLOPs``: of :meth:`~uncertainty_est.models.base.Method.predict` on the first input, with every pass,
      member and gradient that it takes. A multiply-add counts as two. Matrix products, convolutions
      and attention are counted; element-wise operations, reductions and triangular solves are not.

    Args:
        method: ready to predict.
        x: ``[B, *data_shape]``, B at least 1, in the network's input space and on the device of `method`.

    Raises:
        NotFittedError: a post-hoc method before its fit.
    """
    with Counter() as counter:
        method.predict(x[:1])
    return {
        "Parameters": sum(p.numel() for p in method.parameters()),
        "Buffers": sum(b.numel() for b in method.buffers()),
        "FLOPs": counter.total,
    }


def complexity_table(info: RunInfo, method: Method, x: Tensor) -> pd.DataFrame:
    """One row for each number of :func:`complexity`."""
    numbers = complexity(method, x)
    return pd.DataFrame(info.row({"Metric": name, "Value": value}, {}) for name, value in numbers.items())
