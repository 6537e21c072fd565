"""CCU: a classifier that is provably undecided far from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from uncertainty_est import measures
from uncertainty_est.densities.certificate import RatioBound, confidence_bound, log_target
from uncertainty_est.densities.pca_metric import PCAMetric
from uncertainty_est.densities.spherical_mixture import SphericalMixture
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Batch, Prediction, State, load_network
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.networks.base import Network

Items = Iterable[tuple[Tensor, Tensor]]

OUT_DENSITIES = ("mixture", "uniform")
# Standard deviations of the out-mixture are at least twice those of the in-mixture.
_LEAST_LOG_RATIO = math.log(4)
_ROWS = 8192  # of data in double precision at a time


class CCU(CEBaseline):
    r"""Classifier in a mixture of densities of what is in and what is out, whose confidence is bounded in closed form.

    With the ratio :math:`r = \ln p(x \mid \text{in}) - \ln p(x \mid \text{out}) - \ln \lambda` and C classes,

    .. math:: p(y \mid x) = \sigma(r)\, \mathrm{softmax}_y f(x) + \sigma(-r) \tfrac1C .

    Both densities are mixtures of spherical Gaussians in the metric :attr:`metric`, fitted before training
    (:meth:`fit_before`) and then trained with the network:

    .. math:: L = p_{\text{in}} \operatorname{mean}_{\text{in}} \bigl[-\ln p(y \mid x) - \ln m(x)\bigr]
        + p_{\text{out}} \operatorname{mean}_{\text{out}}
        \bigl[-\tfrac1C \textstyle\sum_c \ln p(c \mid x) - \ln m(x)\bigr],
        \quad m = p_{\text{in}}\, p(x \mid \text{in}) + p_{\text{out}}\, p(x \mid \text{out}),

    :math:`p_{\text{in}} = 1 / (1 + \lambda)`, :math:`p_{\text{out}} = \lambda / (1 + \lambda)`. After every step the
    out-variances are raised to four times the largest in-variance, so that r falls without end far from the data and
    p(y|x) goes to 1/C in every direction. r is taken in float64 first: where the two logarithms are of the order of
    1e5, float32 has no digits for their difference.

    Scores: ``max p(y|x)`` (the headline), ``log ratio`` (r), ``log p(x|in)`` and ``Entropy``.

    References:
        Meinke and Hein, arXiv:1909.12180, Eq. 2, 5 and 7, Theorem 3.1.

    Args:
        network: logits f of ``[B, *data_shape]``.
        data_shape: shape of one input.
        num_components: of each mixture.
        whitening: of the metric, see :class:`~uncertainty_est.densities.pca_metric.PCAMetric`.
        out_density: ``"mixture"``, or ``"uniform"`` for :math:`p(x \mid \text{out}) = 1`, without a second mixture.
        weights: of the components, see :class:`~uncertainty_est.densities.spherical_mixture.SphericalMixture`.
        variances: of the components, likewise.
        outlier_weight: :math:`\lambda`, the odds of an input being out.
        mixture_lr: learning rate of means and log-variances, which get no weight decay.
        max_fit_items: at most so many training items, and so many outliers, are read by the fit before training.
        fit_seed: of the fit.

    Raises:
        ValueError: another option, or a number out of its range.
    """

    needs_ood = True

    def __init__(
        self,
        network: Network,
        data_shape: Sequence[int],
        num_components: int = 100,
        whitening: str = "covariance",
        out_density: str = "mixture",
        weights: str = "uniform",
        variances: str = "pooled",
        outlier_weight: float = 1.0,
        mixture_lr: float = 1e-5,
        max_fit_items: int = 60_000,
        fit_seed: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if out_density not in OUT_DENSITIES:
            raise ValueError(f"out_density must be one of {', '.join(OUT_DENSITIES)}, got '{out_density}'")
        if not outlier_weight > 0 or not mixture_lr >= 0:
            raise ValueError(
                f"outlier_weight must be positive and mixture_lr at least 0, got {outlier_weight} and {mixture_lr}"
            )
        if max_fit_items < 2:
            raise ValueError(f"max_fit_items must be at least 2, got {max_fit_items}")
        dim = math.prod(data_shape)
        self.metric = PCAMetric(dim, whitening)
        self.inside = SphericalMixture(num_components, dim, weights, variances)
        self.outside: SphericalMixture | None = None
        self.prefitted: tuple[str, ...] = ("metric", "inside")
        if out_density == "mixture":
            self.outside = SphericalMixture(num_components, dim, weights, variances)
            self.prefitted = ("metric", "inside", "outside")
        self.log_lambda = math.log(outlier_weight)
        self.num_classes = network.head.out_features
        self.mixture_lr = mixture_lr
        self.max_fit_items = max_fit_items
        self.fit_seed = fit_seed
        self.keep_from_ddp("metric")

    # ------------------------------------------------------------------------------------------ before training

    def fit_before(self, id_loader: Items, ood_loader: Items | None) -> None:
        """Fit the metric and the in-mixture to data, and the out-mixture to outliers, in the data's metric.

        Raises:
            DataError: items that no metric can be fitted to.
            ConfigError: fewer items than components.
        """
        x = self._items(id_loader)
        self.metric.fit(x)
        self.inside.fit(self._whiten(x), self.fit_seed)
        if self.outside is not None:
            assert ood_loader is not None  # needs_ood
            self.outside.fit(self._whiten(self._items(ood_loader)), self.fit_seed)
        self.keep_apart()

    def prefit_settings(self) -> dict[str, Any]:
        return {
            "whitening": self.metric.whitening,
            "num_components": self.inside.num_components,
            "weights": self.inside.weights,
            "variances": self.inside.variances,
            "outside": self.outside is not None,
            "max_fit_items": self.max_fit_items,
            "fit_seed": self.fit_seed,
        }

    def _items(self, loader: Items) -> Tensor:
        """The first `max_fit_items` inputs of a loader, ``[N, D]`` on the method's device."""
        parts, count = [], 0
        for x, _ in loader:
            parts.append(x.flatten(1).to(self.device))
            count += len(x)
            if count >= self.max_fit_items:
                break
        return torch.cat(parts)[: self.max_fit_items]

    def _whiten(self, x: Tensor) -> Tensor:
        """Whitened ``x: [N, D]``, a part at a time and in float32: as exact as the inputs were, at half the size."""
        return torch.cat([self.metric.whiten(part).float() for part in x.split(_ROWS)])

    def init_from(self, states: list[State]) -> None:
        """Take over a plain classifier's network, or the network and all densities of a CCU run.

        Raises:
            ConfigError: the number of runs or the weights do not fit.
        """
        if len(states) != 1:
            raise ConfigError(f"fixed.init_from: CCU takes one run, got {len(states)}")
        rest = dict(states[0])
        for name in self.prefitted:
            offered = {key: rest.pop(key) for key in list(rest) if key.startswith(f"{name}.")}
            if offered:
                load_network(self, offered, prefix=f"{name}.")
        super().init_from([rest])

    # ------------------------------------------------------------------------------------------------- densities

    def log_densities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x|in)`` and ``log p(x|out)``, each ``[B]`` float64, of ``x: [B, *data_shape]``.

        Raises:
            NotFittedError: before :meth:`fit_before`.
        """
        with torch.autocast(x.device.type, enabled=False):
            z, volume = self.metric.whiten(x), self.metric.half_log_det()
            inside = self.inside.log_prob(z) - volume
            outside = torch.zeros_like(inside) if self.outside is None else self.outside.log_prob(z) - volume
        return inside, outside

    @torch.no_grad()
    def keep_apart(self) -> None:
        """Raise the out-variances to four times the largest in-variance where they are below."""
        if self.outside is not None:
            self.outside.log_var.clamp_(min=self.inside.log_var.max() + _LEAST_LOG_RATIO)

    # ----------------------------------------------------------------------------------------------- certificate

    @torch.no_grad()
    def log_ratio_bound(self, x: Tensor, radius: Tensor) -> Tensor:
        r"""Largest r that any point within `radius` of x can have, by a closed-form bound :math:`\ln b(R)`.

        Args:
            x: ``[B, *data_shape]``, centres of the balls, in the network's input space.
            radius: ``[B]``, at least 0, in units of :attr:`metric`.

        Returns:
            ``[B]`` float64.
        """
        return self._bound(x)(radius.to(x.device))

    def confidence_bound(self, x: Tensor, radius: Tensor) -> Tensor:
        """Largest probability that any class can have in the balls of :meth:`log_ratio_bound`, ``[B]`` in [1/C, 1]."""
        return confidence_bound(self.log_ratio_bound(x, radius), self.num_classes)

    def certified_radius(self, x: Tensor, factor: float = 1.1) -> Tensor:
        """Radius within which no class gets a probability above ``factor / C``, whatever the network says.

        Args:
            x: ``[B, *data_shape]``.
            factor: between 1 and C.

        Returns:
            ``[B]`` float64 in units of :attr:`metric`; 0 where the bound does not even hold at x, 1e4 at most.

        Raises:
            ValueError: `factor` out of its range.
        """
        return self._bound(x).radius(log_target(factor, self.num_classes))

    @torch.no_grad()
    def _bound(self, x: Tensor) -> RatioBound:
        volume = 0.0 if self.outside is not None else self.metric.half_log_det()
        return RatioBound(self.inside, self.outside, self.metric.whiten(x), self.log_lambda + volume)

    # -------------------------------------------------------------------------------------- training and scoring

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Beside ``features`` and ``logits``, ``log_inside`` and ``log_outside``, ``[B]`` float64."""
        inside, outside = self.log_densities(x)
        return super().outputs(x) | {"log_inside": inside, "log_outside": outside}

    def predict_from(self, outputs: dict[str, Tensor]) -> Prediction:
        ratio = self._ratio(outputs)
        share = ratio.sigmoid().unsqueeze(-1)
        # Products and not exponentials of logarithms: exactly 1/C where the in-density is nothing.
        probs = share * outputs["logits"].double().softmax(-1) + (-ratio).sigmoid().unsqueeze(-1) / self.num_classes
        scores = {
            "max p(y|x)": probs.amax(-1),
            "log ratio": ratio,
            "log p(x|in)": outputs["log_inside"],
            "Entropy": -measures.entropy(probs),
        }
        return Prediction(probs.float(), scores)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.validate_batch(batch)[0]

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        x, y = batch["id"]
        # Data and outliers in one pass, so that batch normalisation sees both.
        outputs = self.outputs(torch.cat([x, batch["ood"][0]]))
        log_probs, log_marginal = self._log_mixture(outputs), self._log_marginal(outputs)
        log_in, log_out = self._log_shares()
        p_in, p_out = math.exp(log_in), math.exp(log_out)
        n = len(x)
        ratio = self._ratio(outputs)
        self.note({"log_ratio/id": ratio[:n].mean(), "log_ratio/ood": ratio[n:].mean()})
        parts = {
            "ce": p_in * F.nll_loss(log_probs[:n], y),
            "uniform": -p_out * log_probs[n:].mean(),
            "likelihood_id": -p_in * log_marginal[:n].mean(),
            "likelihood_ood": -p_out * log_marginal[n:].mean(),
        }
        return {name: part.float() for name, part in parts.items()}, log_probs[:n].exp().float()

    def _log_shares(self) -> tuple[float, float]:
        """Logarithms of p(in) and p(out)."""
        log_total = math.log1p(math.exp(self.log_lambda))
        return -log_total, self.log_lambda - log_total

    def _ratio(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["log_inside"] - outputs["log_outside"] - self.log_lambda

    def _log_mixture(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """``log p(y|x)``, ``[B, C]`` float64; with r at hand, both limits are exact."""
        ratio = self._ratio(outputs).unsqueeze(-1)
        log_probs = outputs["logits"].double().log_softmax(-1)
        ignorance = ratio.new_tensor(-math.log(self.num_classes))
        return torch.logaddexp(log_probs + ratio, ignorance) - torch.logaddexp(ratio, torch.zeros_like(ratio))

    def _log_marginal(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """``log m(x)``, ``[B]`` float64."""
        log_in, log_out = self._log_shares()
        return torch.logaddexp(log_in + outputs["log_inside"], log_out + outputs["log_outside"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        mixtures = [m for m in (self.inside, self.outside) if m is not None]
        return [
            {"params": list(self.network.parameters())},
            {
                "params": [parameter for mixture in mixtures for parameter in mixture.parameters()],
                "lr": self.mixture_lr,
                "weight_decay": 0.0,
            },
        ]

    def on_fit_start(self) -> None:
        # What DDP is told to leave alone, it does not copy from the first process either.
        if distributed.is_available() and distributed.is_initialized():
            for tensor in self.metric.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.keep_apart()
