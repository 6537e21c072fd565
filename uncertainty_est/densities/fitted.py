"""State that is computed from data and kept in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uncertainty_est.errors import NotFittedError


class Fitted(nn.Module):
    """A module whose state is fitted to data, in float64, and whose buffer `fitted` tells whether it has been.

    Floating tensors stay in their own type whatever cast (``half()``, ``float()``, ``to(dtype)``) reaches the module or
    a parent of it; moves from device to device are followed.
    """

    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.tensor(False))
        # The buffer is read until it says yes, and after loading: reading it in every step would make the host wait.
        self._known_fitted = False
        self.register_load_state_dict_post_hook(_look_again)

    def require_fit(self) -> None:
        """Let nobody read a state that is not there.

        Raises:
            NotFittedError: neither fitted nor loaded.
        """
        self._known_fitted = self._known_fitted or bool(self.fitted)
        if not self._known_fitted:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit or load a fitted checkpoint")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fitted:
        # Every cast and move of a module comes through here: follow the move, refuse the cast.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


def _look_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Fitted)
    module._known_fitted = False
