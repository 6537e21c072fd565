"""The contract of post-hoc scores, and how ``--scores`` names them."""

from __future__ import annotations

import inspect
import pkgutil
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from uncertainty_est import posthoc
from uncertainty_est.errors import ConfigError, NotFittedError, did_you_mean
from uncertainty_est.samplers.ascent import ascending_step
from uncertainty_est.samplers.sgld import value_and_gradient

# Features ``[B, D]`` and logits ``[B, C]`` of ``x: [B, *data_shape]``, differentiable in x.
Classifier = Callable[[Tensor], tuple[Tensor, Tensor]]
State = TypeVar("State")

ALL = "all"


class PosthocScore(ABC):
    """A score that reads a trained classifier's features and logits; the classifier stays as it is.

    A subclass in this package is found by itself. The arguments of its constructor are its settings on the command
    line, so they are numbers, words or truth values with defaults.

    Attributes:
        settings: those that differ from the defaults, as the command line gave them.
    """

    name: ClassVar[str]
    """What ``--scores`` calls it."""
    title: ClassVar[str]
    """What tables call it; no method has a score of its own by this name."""
    split: ClassVar[Literal["train", "val"] | None] = None
    """The split that :meth:`fit` reads; without one, it is given no samples."""
    package: ClassVar[str | None] = None
    """Module that must be installed beside this package, if any."""
    settings: str = ""

    @property
    def label(self) -> str:
        """:attr:`title`, and :attr:`settings` where there are any."""
        return f"{self.title} ({self.settings})" if self.settings else self.title

    @classmethod
    def available(cls) -> bool:
        """Whether the package that it needs, if any, is installed."""
        return cls.package is None or find_spec(cls.package) is not None

    def fit(  # noqa: B027 (a hook, not abstract)
        self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module
    ) -> None:
        """Take what :meth:`score` needs from the samples of :attr:`split` and from the last layer.

        Args:
            features: ``[N, D]``, on the device where scores are computed.
            logits: ``[N, C]``, likewise.
            labels: ``[N]``, likewise.
            head: the classifier's last layer, a linear map ``[B, D] -> [B, C]`` that is read and never changed.

        Raises:
            DataError: the samples do not determine what is fitted.
        """

    @abstractmethod
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Scores ``[B]``, higher = more in-distribution, of ``features: [B, D]`` and ``logits: [B, C]``.

        Raises:
            NotFittedError: before :meth:`fit`, where there is one.
        """

    def require(self, state: State | None) -> State:
        """State that :meth:`fit` has set.

        Raises:
            NotFittedError: it has not.
        """
        if state is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit before score")
        return state


class PerturbedScore(PosthocScore):
    r"""A score S read at inputs that a small step has moved to more of it.

    .. math:: S(\hat x), \quad \hat x = x + \tfrac{\epsilon}{s}\, \mathrm{sign} \nabla_x R(x)

    with the standard deviations s of the transform, so that :math:`\epsilon` is in units of pixels in [0, 1];
    :meth:`raised` says what R is. Without a step :meth:`score` is all, and no pass but the shared one is needed.

    References:
        Liang et al., arXiv:1706.02690, Eq. 2.

    Args:
        epsilon: :math:`\epsilon`.

    Raises:
        ValueError: a negative epsilon.
    """

    def __init__(self, epsilon: float) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, got {epsilon}")
        self.epsilon = epsilon

    def raised(self, features: Tensor, logits: Tensor) -> Tensor:
        """R, ``[B]``, differentiable; the score itself if not overridden."""
        return self.score(features, logits)

    def score_inputs(self, x: Tensor, classifier: Classifier, std: Tensor) -> Tensor:
        """S at moved inputs, ``[B]``, by two passes forward and one back.

        Args:
            x: network inputs, ``[B, *data_shape]``.
            classifier: in eval mode.
            std: s, a scalar or ``[1, C, 1, 1]``.
        """
        # The signs of a gradient that half precision has rounded are others.
        with torch.autocast(x.device.type, enabled=False):
            gradient = value_and_gradient(lambda inputs: self.raised(*classifier(inputs)), x.float())[1]
            return self.score(*classifier(ascending_step(x, gradient, self.epsilon, std)))


def all_scores() -> dict[str, type[PosthocScore]]:
    """Every score of the package by its name, in alphabetical order, whether what it needs is installed or not."""
    for module in pkgutil.iter_modules(posthoc.__path__, posthoc.__name__ + "."):
        import_module(module.name)
    found = {
        cls.name: cls
        for cls in _subclasses(PosthocScore)
        if cls.__module__.startswith(posthoc.__name__) and not inspect.isabstract(cls)
    }
    return dict(sorted(found.items()))


def scores_named(names: Iterable[str]) -> list[PosthocScore]:
    """Scores, not fitted yet, in the order given; each name once with the same settings.

    Args:
        names: each ``name`` or ``name:setting=value:setting=value``; ``all`` stands for all that can be computed with
            what is installed.

    Raises:
        ConfigError: an unknown name or setting, a value of the wrong kind, or a package that is missing.
    """
    known = all_scores()
    asked: list[str] = []
    for name in names:
        asked += [cls.name for cls in known.values() if cls.available()] if name == ALL else [name]
    return [_built(spec, known) for spec in dict.fromkeys(asked)]


def _built(spec: str, known: dict[str, type[PosthocScore]]) -> PosthocScore:
    name, *settings = spec.split(":")
    if name not in known:
        raise ConfigError(
            f"--scores {name}: there is no such score{did_you_mean(name, known)} (there are: {', '.join(known)};"
            f" {ALL} for all of them)"
        )
    cls = known[name]
    if not cls.available():
        raise ConfigError(
            f"--scores {name}: needs the package {cls.package}; install it with: pip install 'uncertainty_est[scores]'"
        )
    values = dict(_setting(cls, setting) for setting in settings)
    try:
        score = cls(**values)
    except ValueError as error:
        raise ConfigError(f"--scores {spec}: {error}") from error
    score.settings = ", ".join(settings)
    return score


def _setting(cls: type[PosthocScore], text: str) -> tuple[str, Any]:
    """Name and value of one ``setting=value``, by the type that the constructor says it has."""
    key, separator, value = text.partition("=")
    hints = get_type_hints(cls.__init__)
    parameters = list(inspect.signature(cls).parameters)
    if not separator or key not in parameters:
        there_are = f"has the settings {', '.join(parameters)}" if parameters else "has no settings"
        raise ConfigError(
            f"--scores {cls.name}:{text}: {cls.name} {there_are}, each written :setting=value"
            f"{did_you_mean(key, parameters)}"
        )
    kind = hints[key]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    try:
        return key, _TRUTH[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--scores {cls.name}:{text}: '{value}' is not a valid {kind.__name__}") from error


_TRUTH = {"true": True, "false": False}


def _subclasses(cls: type) -> Iterator[type[Any]]:
    subclasses: list[type[Any]] = cls.__subclasses__()
    for direct in subclasses:
        yield direct
        yield from _subclasses(direct)
