"""Detectors of the package pytorch-ood behind our contract: those that are right and fast enough as they are there."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from uncertainty_est.errors import DataError
from uncertainty_est.posthoc.base import PosthocScore


class Adapted(PosthocScore):
    """A detector of features, with its score's sign turned: there higher = more out-of-distribution."""

    split: ClassVar[Literal["train", "val"] | None] = "train"
    package = "pytorch_ood"

    def __init__(self) -> None:
        self._detector: Any = None

    @abstractmethod
    def detector(self, detectors: Any, head: nn.Module) -> Any:
        """The detector, not fitted yet, of the module ``pytorch_ood.detector``."""

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor, head: nn.Module) -> None:
        """See :meth:`PosthocScore.fit`.

        Raises:
            DataError: the detector cannot be fitted to these data.
        """
        detector = self.detector(import_module("pytorch_ood.detector"), head)
        try:
            self._detector = self.fitted(detector, features, logits, labels)
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from error

    def fitted(self, detector: Any, features: Tensor, logits: Tensor, labels: Tensor) -> Any:
        """`detector` after its fit."""
        return detector.fit_features(features, labels)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.require(self._detector).predict_features(features)


class KLMatching(Adapted):
    r"""Negative divergence of the prediction from the nearest typical one, :math:`-\min_k \mathrm{KL}(p \| d_k)`.

    :math:`d_k` is the mean prediction on the validation inputs that are predicted as k. Theirs handles probabilities of
    0, and its loop over classes is in the fit alone.

    References:
        Hendrycks et al., arXiv:1911.11132.
    """

    name = "kl_matching"
    title = "KL matching"
    split = "val"

    def detector(self, detectors: Any, head: nn.Module) -> Any:
        return detectors.KLMatching(model=None)

    def fitted(self, detector: Any, features: Tensor, logits: Tensor, labels: Tensor) -> Any:
        return detector.fit_logits(logits, labels)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.require(self._detector).predict_logits(logits)


class FDBD(Adapted):
    r"""Mean distance of features to the decision boundaries, in units of their distance to the training mean.

    Theirs is in closed form, with all pairs of classes at once.

    References:
        Liu and Qin, arXiv:2312.11536.
    """

    name = "fdbd"
    title = "fDBD"

    def detector(self, detectors: Any, head: nn.Module) -> Any:
        return detectors.fDBD(encoder=None, head=head)


class NNGuide(Adapted):
    r"""Energy times the mean of the k largest similarities to training features, which their energies weigh.

    Theirs searches exactly, by products in chunks.

    References:
        Park et al., arXiv:2309.14888.

    Args:
        k: number of neighbours.

    Raises:
        ValueError: k below 1.
    """

    name = "nnguide"
    title = "NNGuide"

    def __init__(self, k: int = 10) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k

    def detector(self, detectors: Any, head: nn.Module) -> Any:
        return detectors.NNGuide(encoder=None, head=head, k=self.k)


class NCI(Adapted):
    r"""Alignment of centred features with the predicted class' weights, and their norm, as neural collapse has it.

    Theirs is a formula of a few lines.

    References:
        Liu and Qin, arXiv:2311.01479.

    Args:
        alpha: weight of the features' norm.

    Raises:
        ValueError: a negative weight.
    """

    name = "nci"
    title = "NCI"

    def __init__(self, alpha: float = 0.0) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        self.alpha = alpha

    def detector(self, detectors: Any, head: nn.Module) -> Any:
        return detectors.NCI(encoder=None, head=head, alpha=self.alpha)


class PNML(Adapted):
    r"""Negative regret of the last layer's predictive normalised maximum likelihood.

    Theirs inverts the small Gram matrix and not the features.

    References:
        Bibas et al., arXiv:2110.09246.
    """

    name = "pnml"
    title = "pNML"

    def detector(self, detectors: Any, head: nn.Module) -> Any:
        return detectors.PNML(encoder=None, head=head)
