"""What an error predictor sees of an input: numbers that mean the same under every fold's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics, TiedGaussians
from uncertainty_est.errors import ConfigError, DataError, did_you_mean

FEATURES = ("density", "variance", "max_prob", "entropy", "energy", "logits", "input", "seen")
DEFAULT_FEATURES = ("density", "variance", "max_prob", "entropy")
_CHUNK = 4096
# A spread this small against the mean is rounding.
_CONSTANT = 1e-12


class ErrorFeatures(Fitted):
    r"""Describes a model's outputs by ``[B, F]`` numbers, standardised by the data that the model was trained on.

    With features z and logits f of the model: ``density`` :math:`\ln \sum_c \pi_c \mathcal N(z; \mu_c, \Sigma_c)`;
    ``variance`` :math:`\ln(1 + (z - \mu)^\top \Sigma^{-1} (z - \mu))`, the log-variance, up to a constant, of what a
    linear model on z predicts; ``max_prob`` and ``entropy`` of softmax f; ``energy`` lse f; ``logits`` f; ``input`` the
    input itself; ``seen``, last, 1 for samples that the model was trained on. All but the last are standardised by mean
    and standard deviation over the data that they are fitted to, so that levels of different models compare, and drawn
    in by asinh, so that inputs far from all data stay in the reach of a predictor, in their order.

    Classes with fewer than 2 samples in the data have no part in the density. State is float64.

    References:
        Lahlou et al., arXiv:2102.08501 (stationarising features). Density: Mukhoti et al., arXiv:2102.11582.

    Args:
        names: of :data:`FEATURES`.
        dim: D, of z; 0 where no feature is made of it.
        num_classes: of the density; 1 for regression.
        num_logits: C, length of f; 0 without classes.
        input_dim: P, of flattened inputs.
        min_jitter: smallest number added to the covariances' diagonals.
        scaled: standardise and draw in; else all is as it is.

    Raises:
        ConfigError: unknown features, one twice, or none beside ``seen``.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        num_classes: int = 1,
        num_logits: int = 0,
        input_dim: int = 0,
        min_jitter: float = 0.0,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        for name in names:
            if name not in FEATURES:
                raise ConfigError(
                    f"fixed.model_config.features: '{name}' is none of {', '.join(FEATURES)}"
                    f"{did_you_mean(name, FEATURES)}"
                )
        self.names = [name for name in names if name != "seen"]
        if len(set(names)) != len(names) or not self.names:
            raise ConfigError(
                f"fixed.model_config.features: must name one or more beside 'seen', each once, got {list(names)}"
            )
        self.with_seen = "seen" in names
        self.scaled = scaled
        self.min_jitter = min_jitter
        self.density = ClassGaussians(num_classes, dim, min_jitter) if "density" in names else None
        self.spread = TiedGaussians(1, dim, min_jitter) if "variance" in names else None
        self.statistics_shape = (num_classes, dim)
        widths = {"logits": num_logits, "input": input_dim}
        columns = sum(widths.get(name, 1) for name in self.names)
        self.register_buffer("mean", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(columns, dtype=torch.float64))
        self.length = columns + self.with_seen

    @torch.no_grad()
    def fit(self, outputs: Mapping[str, Tensor], y: Tensor) -> None:
        """Fit densities and scaling to a model's outputs for the N samples that it was trained on.

        Args:
            outputs: ``features [N, D]``, ``logits [N, C]``, ``input [N, P]``, as far as the chosen features need them.
            y: labels ``[N]``; anything where the density has one class.

        Raises:
            DataError: the density is asked for, and no class has 2 samples.
        """
        classes, dim = self.statistics_shape
        if self.density is not None or self.spread is not None:
            statistics = GaussianStatistics(classes, dim, device=self.mean.device)
            labels = y if classes > 1 else torch.zeros(len(y), dtype=torch.long, device=y.device)
            for z, c in zip(outputs["features"].split(_CHUNK), labels.split(_CHUNK), strict=True):
                statistics.update(z, c)
            if self.density is not None:
                _fit_present(self.density, statistics)
            if self.spread is not None:
                self.spread.fit(pooled(statistics))
        if self.scaled:
            columns = self.columns(outputs)
            mean, std = columns.mean(0), columns.std(0, correction=0)
            self.mean.copy_(mean)
            self.scale.copy_(torch.where(std > _CONSTANT * mean.abs(), std, 1.0))
        self.fitted.fill_(True)

    def columns(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """All features but ``seen`` as they are, ``[B, F']`` float64."""
        return torch.cat([self._column(name, outputs) for name in self.names], -1)

    def forward(self, outputs: Mapping[str, Tensor], seen: Tensor | None = None) -> Tensor:
        """Features ``[B, F]`` float64; nothing is seen if `seen`, ``[B]``, is not given.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self.require_fit()
        columns = self.columns(outputs)
        if self.scaled:
            columns = ((columns - self.mean) / self.scale).asinh()
        if not self.with_seen:
            return columns
        bit = columns.new_zeros(len(columns)) if seen is None else seen.to(columns)
        return torch.cat([columns, bit.unsqueeze(-1)], -1)

    def _column(self, name: str, outputs: Mapping[str, Tensor]) -> Tensor:
        if name == "density":
            assert self.density is not None
            log_joint = self.density.log_prob(outputs["features"]) + self.density.log_prior
            return log_joint.logsumexp(-1, keepdim=True)
        if name == "variance":
            assert self.spread is not None
            return self.spread.squared_distances(outputs["features"]).log1p()
        if name == "input":
            return outputs["input"].double()
        logits = outputs["logits"].double()
        if name == "logits":
            return logits
        if name == "energy":
            return logits.logsumexp(-1, keepdim=True)
        probs = logits.softmax(-1)
        return (probs.amax(-1) if name == "max_prob" else measures.entropy(probs)).unsqueeze(-1)


def pooled(statistics: GaussianStatistics) -> GaussianStatistics:
    """The statistics of all classes together, as of a single one."""
    count = statistics.count.sum(0, keepdim=True)
    weights = statistics.count.to(statistics.mean).unsqueeze(-1)
    mean = (weights * statistics.mean).sum(0, keepdim=True) / count
    rows = weights.sqrt() * (statistics.mean - mean)
    whole = GaussianStatistics(1, statistics.mean.shape[-1], device=statistics.mean.device)
    whole.count, whole.mean = count, mean
    whole.scatter = statistics.scatter.sum(0, keepdim=True) + rows.T @ rows
    return whole


def _fit_present(density: ClassGaussians, statistics: GaussianStatistics) -> None:
    """Fit the classes that have at least 2 samples; the others get the prior 0."""
    present = (statistics.count >= 2).nonzero().squeeze(-1)
    if not len(present):
        raise DataError("no class has the 2 samples that a density of its features needs: add samples to the data set")
    dim = statistics.mean.shape[-1]
    part = GaussianStatistics(len(present), dim, device=statistics.mean.device)
    part.count, part.mean, part.scatter = (getattr(statistics, name)[present] for name in ("count", "mean", "scatter"))
    of_present = ClassGaussians(len(present), dim, density.min_jitter).to(density.mean.device)
    of_present.fit(part)
    density.mean.zero_()[present] = of_present.mean
    density.scale_tril.copy_(torch.eye(dim).to(density.scale_tril))[present] = of_present.scale_tril
    density.log_prior.fill_(-torch.inf)[present] = of_present.log_prior
    density.jitter.copy_(of_present.jitter)
    density.fitted.fill_(True)
