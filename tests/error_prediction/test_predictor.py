"""The error predictor: what it learns of a misspecified model, its transforms, and TorchUncertainty's variant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from uncertainty_est.error_prediction.features import ErrorFeatures
from uncertainty_est.error_prediction.folds import held_out_by_fold, pointwise_errors, rows_of_fold, stacked
from uncertainty_est.error_prediction.predictor import TRANSFORMS, ErrorPredictor, fit_distilled
from uncertainty_est.errors import DataError, NotFittedError


def sines(n: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs in [-3, 3], and their sine with noise of standard deviation `noise` * (1 + x / 3)."""
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(n, generator=generator) - 3
    return x, (2 * x).sin() + noise * (1 + x / 3) * torch.randn(n, generator=generator)


def line(x: Tensor, y: Tensor) -> Tensor:
    """Intercept and slope of the least-squares line."""
    return torch.linalg.lstsq(torch.stack([torch.ones_like(x), x], -1), y.unsqueeze(-1)).solution.squeeze(-1)


def outputs_of_line(weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"prediction": weights[0] + weights[1] * x, "input": x.unsqueeze(-1), "features": x.unsqueeze(-1)}


def deup_of_line(x: Tensor, y: Tensor, target: str) -> tuple[ErrorFeatures, ErrorPredictor]:
    """Algorithm 2 for a line that is fitted to what is none."""

    def describe() -> ErrorFeatures:
        return ErrorFeatures(["input", "density"], 1, input_dim=1)

    def outputs_of(train: Tensor) -> dict[str, Tensor]:
        return outputs_of_line(line(x[train], y[train]), x)

    masks = held_out_by_fold(y, 5, "random", torch.Generator().manual_seed(0))
    rows = stacked(rows_of_fold(held_out, y, outputs_of, describe(), "regression") for held_out in masks)
    whole = describe()
    whole.fit(outputs_of(torch.arange(len(y))), y)
    predictor = ErrorPredictor(2, target=target)
    predictor.fit(rows.features, rows.errors, rows.samples)
    return whole, predictor


@pytest.mark.parametrize("target", ["log", "none"])
def test_it_learns_the_bias_of_a_line_through_a_sine_where_variance_does_not(target: str) -> None:
    x, y = sines(800, noise=0.1)
    describe, predictor = deup_of_line(x, y, target)
    grid = torch.linspace(-2.9, 2.9, 400)
    bias = (line(x, y)[0] + line(x, y)[1] * grid - (2 * grid).sin()).square()
    with torch.no_grad():
        predicted = predictor(describe(outputs_of_line(line(x, y), grid)))
    assert spearmanr(predicted, bias)[0] > 0.8
    generator = torch.Generator().manual_seed(0)
    resampled = [torch.randint(len(x), (len(x),), generator=generator) for _ in range(20)]
    lines = torch.stack([line(x[rows], y[rows]) for rows in resampled])
    variance = (lines[:, :1] + lines[:, 1:] * grid).var(0)
    assert spearmanr(variance, bias)[0] < 0.5


def test_less_known_noise_it_is_the_squared_bias() -> None:
    x, y = sines(2500, noise=0.5)
    describe, predictor = deup_of_line(x, y, "none")
    grid = torch.linspace(-2.9, 2.9, 400)
    bias = (line(x, y)[0] + line(x, y)[1] * grid - (2 * grid).sin()).square()
    noise = (0.5 * (1 + grid / 3)).square()
    with torch.no_grad():
        predicted = predictor(describe(outputs_of_line(line(x, y), grid)))
    excess = (predicted - noise).clamp(min=0)
    assert (excess - bias).abs().mean() < 0.12 < 0.2 < bias.mean()
    assert (predicted - bias).mean() > 0.2, "the noise is in g, and no longer in the excess"


@pytest.mark.parametrize("target", TRANSFORMS)
def test_transforms_are_inverse_and_predictions_positive(target: str) -> None:
    e = torch.logspace(-4, 4, 50, dtype=torch.float64)
    transform = TRANSFORMS[target]
    torch.testing.assert_close(transform.error(transform.target(e)), e, rtol=0.02, atol=0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 2, generator=generator)
    predictor = ErrorPredictor(2, hidden_dims=[16], target=target)
    predictor.fit(features, features[:, 0].exp(), max_epochs=20)
    far = predictor(1e6 * torch.randn(1000, 2, generator=generator)).detach()
    assert (far >= 0).all() and far.float().isfinite().all()
    assert spearmanr(predictor(features).detach(), features[:, 0])[0] > 0.9


def test_constant_features_give_a_constant_near_the_mean() -> None:
    errors = torch.rand(300, generator=torch.Generator().manual_seed(0))
    predictor = ErrorPredictor(3, target="none")
    predictor.fit(torch.full((300, 3), 0.7), errors)
    predicted = predictor(torch.full((5, 3), 0.7)).detach()
    assert (predicted == predicted[0]).all()
    assert predicted[0].item() == pytest.approx(errors.mean().item(), abs=0.05)


def test_of_the_seed_alone_and_leaves_global_generators_alone() -> None:
    features = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    errors = features.square().sum(-1)
    before = torch.get_rng_state()
    states = []
    for seed in (1, 1, 2):
        predictor = ErrorPredictor(2)
        torch.manual_seed(123)
        state = torch.get_rng_state()
        predictor.fit(features, errors, seed=seed, max_epochs=3)
        assert torch.equal(torch.get_rng_state(), state)
        states.append(torch.cat([p.detach().flatten() for p in predictor.parameters()]))
    torch.set_rng_state(before)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_rows_of_a_sample_stay_on_one_side_of_the_cut() -> None:
    """Unlearnable errors, every sample four times: rows on both sides would reward learning them by heart."""
    generator = torch.Generator().manual_seed(0)
    features, errors = torch.randn(60, 8, generator=generator), torch.rand(60, generator=generator)
    samples = torch.arange(60)
    spreads = []
    for numbers in (samples.repeat(4), None):
        predictor = ErrorPredictor(8, target="none")
        predictor.fit(features.repeat(4, 1), errors.repeat(4), numbers)
        spreads.append(predictor(features).detach().std())
    assert spreads[0] < 0.5 * spreads[1]


def test_bad_rows_and_no_fit_are_errors() -> None:
    predictor = ErrorPredictor(1)
    with pytest.raises(NotFittedError):
        predictor(torch.zeros(1, 1))
    with pytest.raises(DataError, match="must be finite"):
        predictor.fit(torch.zeros(3, 1), torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(DataError, match="at least 2 samples, got 1"):
        predictor.fit(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="target must be one of"):
        ErrorPredictor(1, target="square")
    with pytest.raises(DataError, match="3 samples cannot be cut into 5 folds"):
        fit_distilled(lambda: predictor, torch.zeros(3, 1), torch.zeros(3))


# ------------------------------------------------------------------------------------- TorchUncertainty's variant


def predictor_by_formula(num_features: int, width: int) -> ErrorPredictor:
    predictor = ErrorPredictor(num_features, [width], target="none")
    with torch.no_grad():
        for n, p in enumerate(predictor.parameters()):
            values = 0.3 * torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (n + 1.3) + n)
            p.copy_(values.view_as(p))
    return predictor


def logits_by_formula(t: Tensor) -> Tensor:
    return torch.stack([2 * torch.sin(0.7 * t), 2 * torch.cos(1.1 * t), torch.sin(0.3 * t + 1)], -1).float()


# Made with torch-uncertainty 0.13.0: DEUP(task, identity, num_folds, hidden_dim, max_epochs=40, lr), weights as above.
@pytest.mark.parametrize(
    ("width", "lr", "expected"),
    [
        (8, 1e-2, [1.2422127723693848, 1.0061765909194946, 0.8682459592819214, 0.8493085503578186, 0.8670107126235962]),
        (64, 1e-3, [1.635729432106018, 1.6022052764892578, 1.1673444509506226, 1.1948102712631226, 1.2219985723495483]),
    ],
)
def test_the_variant_gives_the_packages_numbers_for_classes(width: int, lr: float, expected: list[float]) -> None:
    n = torch.arange(23)
    data, y = {"logits": logits_by_formula(n.double())}, n * 7 % 5 % 3
    describe = ErrorFeatures(["logits", "max_prob", "entropy"], 0, num_logits=3, scaled=False)
    describe.fit(data, y)
    errors = pointwise_errors("classification", data, y)
    predictor = fit_distilled(lambda: predictor_by_formula(5, width), describe(data), errors, lr=lr)
    new = {"logits": logits_by_formula(torch.arange(5, dtype=torch.float64) + 30.5)}
    np.testing.assert_allclose(predictor(describe(new)).detach(), expected, rtol=1e-5)


def test_the_variant_gives_the_packages_numbers_for_regression() -> None:
    expected = [0.7919993996620178, 0.937029242515564, 1.071456789970398, 1.138174057006836, 1.103654146194458]
    t = torch.arange(23, dtype=torch.float64)
    prediction, y = torch.sin(0.7 * t).float(), torch.cos(0.4 * t).float()
    errors = pointwise_errors("regression", {"prediction": prediction}, y)
    features = prediction.unsqueeze(-1)
    predictor = fit_distilled(lambda: predictor_by_formula(1, 8), features, errors, folds=4, lr=1e-2)
    new = torch.sin(0.7 * (torch.arange(5, dtype=torch.float64) + 30.5)).float().unsqueeze(-1)
    np.testing.assert_allclose(predictor(new).detach(), expected, rtol=1e-5)
