"""ELOC: an ensemble whose members each take some of the classes for outliers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.errors import ConfigError, NotFittedError
from uncertainty_est.losses.outlier import entropy_margin, max_log_prob
from uncertainty_est.models.base import Batch, Prediction, State, load_network
from uncertainty_est.models.ensemble import Ensemble
from uncertainty_est.models.raw_units import RawUnits
from uncertainty_est.models.tuning import Loader, candidates, choose
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.ascent import ascending_step
from uncertainty_est.samplers.sgld import value_and_gradient

log = logging.getLogger(__name__)

# From none to a few times the default, for want of a list in the paper.
EPSILONS = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008)
# One sample has no batch statistics.
_SMALLEST_PART = 2


class LeaveOutEnsemble(Ensemble):
    r"""Ensemble of leave-out classifiers: member k learns all classes but the k-th fold of them, its own outliers.

    The classes are cut into K folds. With the samples x of a batch that belong to member k's classes, the others
    :math:`\tilde x`, and the batch means :math:`\bar H` of its entropies,

    .. math:: L = \sum_k \mathrm{CE}_k(x, y) + \beta \max(0, m + \bar H_k(x) - \bar H_k(\tilde x)).

    The two parts of a batch are two passes, so that batch normalisation does not mix them; a part of fewer than two
    samples adds nothing. A member's score is taken at a high temperature and at an input of its own,

    .. math:: S(x) = \sum_k \max_c p_{kc} - H[p_k], \quad p_k = \mathrm{softmax}(f_k(\hat x_k) / T), \quad
        \hat x_k = x + \tfrac{\epsilon}{s}\, \mathrm{sign} \nabla_x \max_c \ln \mathrm{softmax}_c(f_k(x) / T),

    with the standard deviations s of the transform, so that :math:`\epsilon` is in units of pixels in [0, 1]. Where a
    slope is exactly 0 the input is lowered: the sign is that of the loss, with 0 as +1.

    Probabilities are the mean of the members' at x and T = 1, with 0 for the classes that a member leaves out: every
    class lacks one vote, and they sum to 1.

    Scores: ``ELOC`` (S less what it is for uniform predictions, at least 0: at a high temperature float32 would have no
    digits for S itself; the headline), ``max p(y|x)`` and ``Entropy`` of the mean. A prediction takes two passes
    forward and one back, of all members at once.

    All members are trained in one run, or each in a run of its own, ``fixed.model_config.fold=k`` (``grid=fold``), put
    together by ``fixed.init_from=[run0,run1,…] fixed.trainer_config.max_epochs=0`` in any order.

    References:
        Vyas et al., arXiv:1809.03576, Section 3.

    Args:
        network: builds one member; called with ``num_classes``, the number of its classes.
        num_classes: C.
        num_folds: K, at least 2; with fewer classes, each is a fold.
        fold: the only member to train; ``None`` for all.
        fold_seed: of the cut; members of one ensemble share it.
        margin: m.
        margin_weight: :math:`\beta`.
        temperature: T.
        epsilon: :math:`\epsilon`; a list, or ``None`` for some, to choose from on ``fixed.val_ood_datasets`` by the
            largest mean AUROC.
        std: of the transform, for each channel or one; 1 for tables.

    Raises:
        ValueError: a number outside its range.
    """

    class_folds: Tensor
    left_out: Tensor
    epsilon: Tensor

    def __init__(
        self,
        network: Callable[..., Network],
        num_classes: int,
        num_folds: int = 5,
        fold: int | None = None,
        fold_seed: int = 3,
        margin: float = 0.4,
        margin_weight: float = 0.2,
        temperature: float = 1000.0,
        epsilon: float | Sequence[float] | None = 0.002,
        std: float | Sequence[float] = 1.0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        if num_folds < 2 or num_classes < 2:
            raise ValueError(f"num_folds and num_classes must be at least 2, got {num_folds} and {num_classes}")
        num_folds = min(num_folds, num_classes)
        if fold is not None and not 0 <= fold < num_folds:
            raise ValueError(f"fold must be one of 0 to {num_folds - 1}, or null for all, got {fold}")
        if margin < 0 or margin_weight < 0 or not temperature > 0:
            raise ValueError(
                f"margin and margin_weight must be at least 0 and temperature positive, got {margin},"
                f" {margin_weight} and {temperature}"
            )
        class_folds = cut_classes(num_classes, num_folds, fold_seed)
        left_out = torch.arange(num_folds) if fold is None else torch.tensor([fold])
        sizes = [int((class_folds != k).sum()) for k in left_out]
        super().__init__((network(num_classes=size) for size in sizes), optimizer, scheduler)
        self.register_buffer("class_folds", class_folds)
        self.register_buffer("left_out", left_out)
        self.num_folds = num_folds
        self.folds = left_out.tolist()
        self.sizes = sizes
        self.margin = margin
        self.margin_weight = margin_weight
        self.temperature = temperature
        self.epsilons = candidates(epsilon, EPSILONS)
        if not (self.epsilons and min(self.epsilons) >= 0):
            raise ValueError(f"epsilon must be at least 0, got {self.epsilons}")
        self.needs_val_ood = len(self.epsilons) > 1
        start = torch.nan if self.needs_val_ood else self.epsilons[0]
        self.register_buffer("epsilon", torch.tensor(start, dtype=torch.float64))
        self.units = RawUnits(std=std)

    # ------------------------------------------------------------------------------------------------- assembly

    def init_from(self, states: list[State]) -> None:
        """Take over members from runs of single folds or of all, in any order; each is told by its run's state.

        Raises:
            ConfigError: a run of another method or cut of the classes, a fold that is missing or there twice, or a
                network that does not fit.
        """
        own = {name for name, _ in self.named_buffers(recurse=False)}
        offered: list[tuple[int, int, State]] = []
        for number, state in enumerate(states):
            named = {key for key in state if not key.startswith("members.")}
            if not {"class_folds", "left_out"} <= named <= own:
                raise ConfigError(
                    f"fixed.init_from: run number {number} is no leave-out ensemble; give runs of this model"
                    f" (for example model=img_leave_out_ensemble)"
                )
            if not torch.equal(state["class_folds"].cpu(), self.class_folds.cpu()):
                raise ConfigError(
                    f"fixed.init_from: run number {number} cuts the classes into other folds; give runs with the same"
                    f" num_folds, fold_seed and data set"
                )
            offered += [(k, i, state) for i, k in enumerate(state["left_out"].tolist())]
        folds, needed = [k for k, _, _ in offered], self.folds
        doubled = sorted({k for k in folds if folds.count(k) > 1})
        missing = sorted(set(needed) - set(folds))
        other = sorted(set(folds) - set(needed))
        for what, which in (("is missing", missing), ("is given twice", doubled), ("is not asked for", other)):
            if which:
                raise ConfigError(
                    f"fixed.init_from: fold {', '.join(map(str, which))} {what}; give one run of each fold of"
                    f" {', '.join(map(str, needed))} (fixed.model_config.fold=…), in any order"
                )
        for k, i, state in offered:
            prefix = f"members.{i}."
            weights = {key: value for key, value in state.items() if key.startswith(prefix)}
            load_network(self, weights, prefix, into=f"members.{needed.index(k)}")

    def setup(self, stage: str) -> None:
        """Lightning's hook before training.

        Raises:
            ConfigError: two classes, of which a member would be left with one.
        """
        if len(self.class_folds) < 3:
            raise ConfigError(
                "fixed.dataset: a leave-out ensemble needs at least 3 classes, as a member learns all but a fold of"
                " them; choose another data set or method"
            )

    # ------------------------------------------------------------------------------------------------ prediction

    def slots(self) -> Tensor:
        """Position of every class among each member's own, ``[M, C]``; the number of these for one it leaves out."""
        own = self.class_folds != self.left_out.unsqueeze(-1)
        return torch.where(own, own.cumsum(-1) - 1, own.sum(-1, keepdim=True))

    def own_logits(self, xs: Iterable[Tensor]) -> list[Tensor]:
        """Logits ``[B, C_m]`` of each member for its own classes, float32, given an input ``[B, *data_shape]`` each."""
        return [member(x).float() for member, x in zip(self.members, xs, strict=True)]

    def padded(self, logits: Sequence[Tensor]) -> Tensor:
        r""":meth:`own_logits` over all classes, ``[M, B, C]``, :math:`-\infty` for those that a member leaves out."""
        pairs = zip(logits, self.slots(), strict=True)
        return torch.stack([F.pad(f, (0, 1), value=-torch.inf)[:, slots] for f, slots in pairs])

    def member_logits(self, x: Tensor) -> Tensor:
        return self.padded(self.own_logits([x] * len(self.members)))

    def _predict(self, x: Tensor) -> Prediction:
        if self.epsilon.isnan():
            raise NotFittedError("the leave-out ensemble has no epsilon: call tune or load a finished run")
        with torch.autocast(x.device.type, enabled=False):
            clean, gradient = self._clean_and_gradient(x)
            score = self._score_at(x, gradient, self.epsilon.float())
        probs = clean.softmax(-1).mean(0)
        mean = probs.double()
        return Prediction(probs, {"ELOC": score, "max p(y|x)": mean.amax(-1), "Entropy": -measures.entropy(mean)})

    def _clean_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`member_logits`, and the gradient of each member's confidence in ``x``, ``[M, B, *data_shape]``."""
        clean: list[Tensor] = []

        def log_confidence(copies: Tensor) -> Tensor:
            clean.append(self.padded(self.own_logits(copies)))
            return max_log_prob(clean[0].double() / self.temperature)

        # A copy of the input for each member: the gradient of the sum is then each one's own, from one pass back.
        gradient = value_and_gradient(log_confidence, x.float().expand(len(self.members), *x.shape))[1]
        return clean[0].detach(), gradient

    def _score_at(self, x: Tensor, gradient: Tensor, epsilon: float | Tensor) -> Tensor:
        """``ELOC`` at inputs perturbed along `gradient`, ``[B]`` float64."""
        signs = torch.where(gradient > 0, 1.0, -1.0)
        moved = ascending_step(x, signs, epsilon, self.units.std)
        certain = certainty(self.padded(self.own_logits(moved)), self.temperature)
        return certain.sum(0) - sum(1 / size - math.log(size) for size in self.sizes)

    def tune(self, loader: Loader, ood_loaders: Mapping[str, Loader]) -> None:
        """Choose epsilon by the mean AUROC over sets; of equal ones the first, in the order given."""
        best, auroc = choose(self, self._all_scores, loader, ood_loaders)
        log.info("leave-out ensemble: epsilon %g (AUROC %.4f)", self.epsilons[best], auroc)
        self.epsilon.fill_(self.epsilons[best])

    def _all_scores(self, x: Tensor) -> Tensor:
        """``ELOC`` with every epsilon, ``[B, E]``."""
        with torch.autocast(x.device.type, enabled=False):
            gradient = self._clean_and_gradient(x)[1]
            return torch.stack([self._score_at(x, gradient, epsilon) for epsilon in self.epsilons], -1)

    # -------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, y = batch["id"]
        parts = self._parts(y)
        logits = [(self._logits(m, x[known]), self._logits(m, x[unknown])) for m, (known, unknown) in enumerate(parts)]
        return self._loss_of(logits, [y[known] for known, _ in parts])

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        own, parts = self.own_logits([x] * len(self.members)), self._parts(y)
        logits = [(f[known], f[unknown]) for f, (known, unknown) in zip(own, parts, strict=True)]
        return self._loss_of(logits, [y[known] for known, _ in parts]), self.padded(own).softmax(-1).mean(0)

    def _parts(self, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Positions of the samples that each member learns, and of its outliers; none where there is only one."""
        folds = self.class_folds[y]
        # Sorted by fold, so that the host waits for the device once and not for every member.
        counts = torch.bincount(folds, minlength=self.num_folds).tolist()
        pieces = folds.argsort(stable=True).split(counts)
        parts = [(torch.cat([*pieces[:k], *pieces[k + 1 :]]), pieces[k]) for k in self.folds]
        some = _SMALLEST_PART
        return [(p if len(p) >= some else p[:0], q if len(q) >= some else q[:0]) for p, q in parts]

    def _logits(self, m: int, x: Tensor) -> Tensor:
        """Logits ``[B, C_m]`` of member m, float32; B may be 0."""
        if len(x):
            return self.members[m](x).float()
        # In the graph all the same: under DDP every rank must give every weight a gradient.
        nothing = 0 * torch.stack([p.flatten()[0] for p in self.members[m].parameters()]).sum()
        return x.new_zeros(0, self.sizes[m]) + nothing

    def _loss_of(self, logits: Sequence[tuple[Tensor, Tensor]], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sums over members, so that each gets the gradient that it would have alone.

        Args:
            logits: of each member, for what it learns and for its outliers, ``[B_m, C_m]`` and ``[B'_m, C_m]``.
            labels: of what it learns, ``[B_m]``, among all classes.
        """
        ce, margin = [], []
        for (known, unknown), y, slots in zip(logits, labels, self.slots(), strict=True):
            ce.append(F.cross_entropy(known, slots[y], reduction="sum") / max(len(y), 1))
            if len(known) and len(unknown):
                margin.append(self.margin_weight * entropy_margin(known, unknown, self.margin))
        return {"ce": torch.stack(ce).sum(), "margin": torch.stack([ce[0].new_zeros(()), *margin]).sum()}


def cut_classes(num_classes: int, num_folds: int, seed: int) -> Tensor:
    """Fold of every class, ``[C]`` int64: the classes in an order drawn from `seed`, cut into K nearly equal parts."""
    folds = torch.empty(num_classes, dtype=torch.long)
    for k, classes in enumerate(np.array_split(np.random.default_rng(seed).permutation(num_classes), num_folds)):
        folds[torch.from_numpy(classes)] = k
    return folds


def certainty(logits: Tensor, temperature: float) -> Tensor:
    r""":math:`\max_c p_c - H[p]` with :math:`p = \mathrm{softmax}(f / T)`, ``[..., C] -> [...]`` float64.

    At least :math:`1/C - \ln C`, where all logits are equal, and at most 1. A logit of :math:`-\infty` is no class.

    References:
        Vyas et al., arXiv:1809.03576, Section 3.
    """
    probs = (logits.double() / temperature).softmax(-1)
    return probs.amax(-1) - measures.entropy(probs)
