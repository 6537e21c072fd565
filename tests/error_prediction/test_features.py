"""Features of outputs against closed forms, and their scaling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from uncertainty_est.densities.gaussian import GaussianStatistics
from uncertainty_est.error_prediction.features import FEATURES, ErrorFeatures, pooled
from uncertainty_est.errors import ConfigError, DataError, NotFittedError

D, C = 3, 4


def outputs(n: int = 200, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=generator)
    y = torch.randint(C, (n,), generator=generator)
    z = z + y.unsqueeze(-1)
    return {"features": z, "logits": 2 * torch.randn(n, C, generator=generator), "input": z[:, :2].exp()}, y


def features(*names: str, scaled: bool = False) -> ErrorFeatures:
    return ErrorFeatures(names, D, num_classes=C, num_logits=C, input_dim=2, scaled=scaled)


def test_all_columns_are_their_closed_forms() -> None:
    data, y = outputs()
    describe = features(*FEATURES)
    describe.fit(data, y)
    z, logits = data["features"].double(), data["logits"].double()
    groups = [z[y == c] for c in range(C)]
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([len(g) for g in groups]).double()),
        MultivariateNormal(torch.stack([g.mean(0) for g in groups]), torch.stack([g.T.cov() for g in groups])),
    )
    centred = z - z.mean(0)
    squared = (centred @ torch.linalg.inv(centred.T @ centred / len(z)) * centred).sum(-1)
    softmax = Categorical(logits=logits)
    single = [mixture.log_prob(z), (1 + squared).log(), softmax.probs.amax(-1), softmax.entropy(), logits.logsumexp(-1)]
    seen = torch.arange(len(z)) % 3 == 0
    expected = torch.cat([torch.stack(single, -1), logits, data["input"].double(), seen.double().unsqueeze(-1)], -1)
    torch.testing.assert_close(describe(data, seen=seen), expected)
    assert describe.length == expected.shape[-1]
    assert (describe(data)[:, -1] == 0).all(), "at test time nothing is seen"


def test_the_variance_is_that_of_least_squares() -> None:
    """A least-squares line's prediction has the variance sigma^2 a^T (A^T A)^-1 a with a = (1, z)."""
    data, y = outputs()
    describe = features("variance")
    describe.fit(data, y)
    design = torch.cat([torch.ones(len(y), 1), data["features"]], -1).double()
    leverage = (design @ torch.linalg.inv(design.T @ design) * design).sum(-1)
    torch.testing.assert_close(describe(data).squeeze(-1).exp() / len(y), leverage)


def test_pooled_statistics_are_those_of_all_samples() -> None:
    data, y = outputs()
    classes, whole = GaussianStatistics(C, D), GaussianStatistics(1, D)
    classes.update(data["features"], y)
    whole.update(data["features"], torch.zeros_like(y))
    for name in ("count", "mean", "scatter"):
        torch.testing.assert_close(getattr(pooled(classes), name), getattr(whole, name))


def test_a_class_that_is_absent_has_no_part_in_the_density() -> None:
    data, y = outputs()
    here = y != 2
    part = {name: value[here] for name, value in data.items()}
    describe = features("density")
    describe.fit(part, y[here])
    three = ErrorFeatures(["density"], D, num_classes=3, scaled=False)
    three.fit(part, torch.where(y[here] == 3, 2, y[here]))
    torch.testing.assert_close(describe(data), three(data))
    with pytest.raises(DataError, match="no class has the 2 samples"):
        describe.fit({name: value[:0] for name, value in data.items()}, y[:0])


def test_scaling_is_of_the_data_fitted_to_keeps_order_and_tames_outliers() -> None:
    data, y = outputs()
    describe, plain = features("density", "entropy", scaled=True), features("density", "entropy")
    describe.fit(data, y), plain.fit(data, y)
    columns = plain(data)
    standard = (columns - columns.mean(0)) / columns.std(0, correction=0)
    torch.testing.assert_close(describe(data).sinh(), standard)
    far = {"features": 10.0 ** torch.arange(1, 8).unsqueeze(-1).expand(-1, D), "logits": data["logits"][:7]}
    density = describe(far)[:, 0]
    assert (density.diff() < 0).all() and density.abs().max() < 50


def test_invariant_to_affine_maps_of_the_features() -> None:
    """As those of two folds' networks may be of each other: standardised, density and variance stay what they were."""
    data, y = outputs()
    first, second = features("density", "variance", scaled=True), features("density", "variance", scaled=True)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(D, D, generator=generator) + 3 * torch.eye(D)
    moved = data | {"features": data["features"] @ matrix + 5}
    first.fit(data, y), second.fit(moved, y)
    torch.testing.assert_close(second(moved), first(data), atol=1e-4, rtol=1e-4)


def test_constant_features_stay_finite() -> None:
    data, y = outputs()
    data["logits"] = torch.ones_like(data["logits"])
    describe = features("max_prob", "logits", scaled=True)
    describe.fit(data, y)
    assert (describe(data) == 0).all()


def test_unknown_or_repeated_features_and_no_fit_are_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"fixed\.model_config\.features: 'entropi' is none of .* did you mean 'entropy'"
    ):
        features("entropi")
    for names in (["seen"], ["energy", "energy"], []):
        with pytest.raises(ConfigError, match="one or more beside 'seen'"):
            features(*names)
    with pytest.raises(NotFittedError):
        features("energy")(outputs()[0])


def test_state_stays_double_and_is_saved() -> None:
    data, y = outputs()
    describe = features("density", "variance", "entropy", scaled=True)
    describe.fit(data, y)
    again = features("density", "variance", "entropy", scaled=True).half()
    again.load_state_dict(describe.state_dict())
    assert torch.equal(again(data), describe(data))
