"""The contract of every classifier network: features, and a linear head that turns them into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from uncertainty_est.errors import ConfigError


class Network(nn.Module, ABC):
    r"""Base of all networks: logits :math:`f(x) = W\,\phi(x) + b` with features :math:`\phi`.

    A subclass sets :attr:`head` and implements :meth:`features`; with more than one stage it also says in
    :meth:`after_stages` where they end. Its constructor takes at least
    ``data_shape``, ``num_classes``, ``layers``, ``mod`` and ``dropout``, so that a method can set these on
    any network.

    Attributes:
        head: the last layer, ``[B, feature_dim] -> [B, num_classes]``; always a plain linear layer.
    """

    head: nn.Linear

    @property
    def feature_dim(self) -> int:
        """Length of the feature vector."""
        return self.head.in_features

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features ``[B, feature_dim]``, the input of the head, of ``x: [B, *data_shape]``."""

    def after_stages(self) -> Sequence[nn.Module]:
        """Modules whose inputs are what the stages before the last one put out, in the order in which they run."""
        return []

    def stage_features(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, each ``[B, D_s]``: means of its maps over the image, and :meth:`features` last."""
        maps: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            maps.append(inputs[0])

        hooks = [module.register_forward_pre_hook(keep) for module in self.after_stages()]
        try:
            last = self.features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [*[m.flatten(2).mean(-1) if m.ndim > 2 else m for m in maps], last]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of ``x: [B, *data_shape]``."""
        return self.head(self.features(x))


def features_and_logits(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[B, feature_dim]`` and logits ``[B, num_classes]``, float32, from one pass over `x`."""
    features = network.features(x)
    return features.float(), network.head(features).float()


def image_shape(data_shape: Sequence[int], *, network: str, min_size: int, instead: str = "fc") -> tuple[int, int, int]:
    """`data_shape` as ``(channels, height, width)``, if `network` can take it.

    Args:
        data_shape: shape of one input.
        network: name of the network, for the error message.
        min_size: smallest height and width.
        instead: the network to suggest for an image that is too small.

    Raises:
        ConfigError: no image, or too small an image.
    """
    shape = [int(n) for n in data_shape]
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(
            f"network {network} needs images [channels, height, width], got data_shape {shape}; choose network=fc"
        )
    channels, height, width = shape
    if min(height, width) < min_size:
        raise ConfigError(
            f"network {network} needs images of at least {min_size}x{min_size}, got data_shape {shape};"
            f" choose network={instead}"
        )
    return channels, height, width
