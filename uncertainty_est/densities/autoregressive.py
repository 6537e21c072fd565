"""Autoregressive flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uncertainty_est.densities.class_flows import ClassFlows

# Log-scales are kept softly within this: one map cannot stretch by more than exp(5).
_LARGEST_LOG_SCALE = 5.0


class AutoregressiveFlows(ClassFlows):
    r"""A stack of affine autoregressive flows for each class, the "IAF" density of Posterior Networks.

    .. math:: z'_i = z_i\, e^{s_i(z_{<i})} + t_i(z_{<i}), \quad \ln \lvert\det J\rvert = \sum_i s_i

    s and t come from a masked network with ReLU; the order of the features is reversed from one map to the next. A
    density is one pass through the networks of all maps.

    References:
        Kingma et al., arXiv:1606.04934 (the flow). Germain et al., arXiv:1502.03509 (the masks).

    Args:
        num_classes: C.
        dim: D.
        num_layers: maps of a stack.
        hidden_dims: widths of each masked network.
    """

    def __init__(
        self, num_classes: int, dim: int, num_layers: int = 8, hidden_dims: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__(num_classes, dim, num_layers)
        widths = [int(width) for width in hidden_dims]
        self.maps = nn.ModuleList(_MaskedNetworks(num_classes, dim, widths) for _ in range(num_layers))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = z.expand(-1, self.num_classes, -1).permute(1, 2, 0)  # [C, B, D]: products of matrices, class by class
        log_det = x.new_zeros(())
        for network in self.maps:
            raw, shift = network(x).chunk(2, dim=-1)
            log_scale = raw / (1 + raw.abs() / _LARGEST_LOG_SCALE)
            x = (x * log_scale.exp() + shift).flip(-1)
            log_det = log_det + log_scale.sum(-1)
        return x.permute(2, 0, 1), log_det


class _MaskedNetworks(nn.Module):
    """C masked networks ``[C, B, D] -> [C, B, 2 D]``: outputs i and D + i see inputs before i only."""

    def __init__(self, num_classes: int, dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        inputs = torch.arange(dim)
        # Hidden unit k may see the inputs up to its degree; the last input is seen by none.
        degrees = [inputs, *(torch.arange(width) % max(dim - 1, 1) for width in hidden_dims)]
        masks = [after[None, :] >= before[:, None] for before, after in zip(degrees[:-1], degrees[1:], strict=True)]
        masks.append((inputs[None, :] > degrees[-1][:, None]).repeat(1, 2))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, mask in enumerate(masks):
            fan_in, fan_out = mask.shape
            last = i == len(masks) - 1
            bound = 0.01 if last else fan_in**-0.5  # near the identity at first
            self.weights.append(torch.empty(num_classes, fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(torch.zeros(num_classes, 1, fan_out))
            self.register_buffer(f"mask{i}", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i:
                x = x.relu()
            x = torch.baddbmm(bias, x, weight * self.get_buffer(f"mask{i}").to(weight.dtype))
        return x
