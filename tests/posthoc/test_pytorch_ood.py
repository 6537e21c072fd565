"""Our scores against pytorch-ood's detectors where both have one, and the detectors that are taken from there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import entropy, spearmanr
from torch import Tensor

from tests.posthoc.conftest import C, Samples
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.posthoc import base
from uncertainty_est.posthoc.base import scores_named

detectors = pytest.importorskip("pytorch_ood.detector")


def maps(z: Tensor) -> Tensor:
    return z[:, :, None, None]


def on_maps(kind: Callable[..., Any], s: Samples, **settings: Any) -> Tensor:
    detector = kind(backbone=None, head=lambda z: s.head(z.flatten(1)), **settings)
    if kind is detectors.ReAct:
        detector.fit_feature_maps(maps(s.features), s.labels)
    return detector.predict_feature_maps(maps(s.z))


def on_features(detector: Any, s: Samples) -> Tensor:
    return detector.fit_features(s.features, s.labels).predict_features(s.z)


# What they call a score is higher for outliers. Factors: GEN is a mean over classes there, and Mahalanobis distances
# are by the scatter, which is the covariance times the number of samples, and half of it.
THEIRS: dict[str, Callable[[Samples], Tensor]] = {
    "msp": lambda s: detectors.MaxSoftmax.score(s.head(s.z)),
    "max_logit": lambda s: detectors.MaxLogit.score(s.head(s.z)),
    "energy": lambda s: detectors.EnergyBased.score(s.head(s.z)),
    "entropy": lambda s: detectors.Entropy.score(s.head(s.z)),
    "gen": lambda s: C * detectors.GEN.score(s.head(s.z)),
    "gen:gamma=0.4:top=2": lambda s: 2 * detectors.GEN.score(s.head(s.z), gamma=0.4, M=2),
    "gradnorm": lambda s: detectors.GradNorm(s.head, param_filter=lambda name: name == "weight").predict(s.z),
    "react": lambda s: on_maps(detectors.ReAct, s),
    "ash:percentile=65": lambda s: on_maps(detectors.ASH, s),
    "ash:percentile=65:variant=p": lambda s: on_maps(detectors.ASH, s, variant="ash-p"),
    "ash:percentile=65:variant=b": lambda s: on_maps(detectors.ASH, s, variant="ash-b"),
    "scale:percentile=65": lambda s: on_maps(detectors.SCALE, s),
    "dice:percentile=70": lambda s: on_features(detectors.DICE(None, s.head.weight, s.head.bias, p=0.7), s),
    "she": lambda s: on_features(detectors.SHE(None, s.head), s),
    "mahalanobis": lambda s: 2 * len(s.features) * on_features(detectors.Mahalanobis(None), s),
    "rmd": lambda s: len(s.features) * on_features(detectors.RMD(None), s),
    "knn:k=5": lambda s: on_features(detectors.KNN(None, k=5), s),
    "vim:dim=6": lambda s: on_features(detectors.ViM(None, 6, s.head.weight, s.head.bias), s),
    "odin:temperature=10:epsilon=0": lambda s: detectors.ODIN(s.head, temperature=10, eps=0).predict(s.z),
}


@pytest.mark.parametrize("spec", THEIRS)
def test_ours_are_theirs(samples: Samples, spec: str) -> None:
    generator = torch.Generator().manual_seed(1)
    # Off 0: with a class' feature that is always 0 there is no density without a jitter, and theirs is another one.
    samples.features = samples.features + 0.3 * torch.rand(samples.features.shape, generator=generator)
    samples.z = samples.z + 0.3 * torch.rand(samples.z.shape, generator=generator)
    (score,) = scores_named([spec])
    expected = -THEIRS[spec](samples).detach().double()
    torch.testing.assert_close(samples.scores(score).double(), expected, rtol=1e-4, atol=2e-4)


def fdbd(s: Samples) -> list[float]:
    weight, mean = s.head.weight.detach(), s.features.mean(0)
    values = []
    for z, f in zip(s.z, s.head(s.z).detach(), strict=True):
        top = int(f.argmax())
        others = [c for c in range(C) if c != top]
        # How far z must be moved, along the normal of the plane f_top = f_c.
        boundary = [float((f[top] - f[c]) / (weight[top] - weight[c]).norm()) for c in others]
        values.append(sum(boundary) / len(others) / float((z - mean).norm()))
    return values


def nnguide(s: Samples) -> list[float]:
    bank = s.features / s.features.norm(dim=1, keepdim=True) * s.logits.logsumexp(1, keepdim=True)
    unit = s.z / s.z.norm(dim=1, keepdim=True)
    guidance = (unit @ bank.T).sort(dim=1).values[:, -10:].mean(1)
    return (guidance * s.head(s.z).logsumexp(1)).tolist()


def nci(s: Samples) -> list[float]:
    centred = s.z - s.features.mean(0)
    weight = s.head.weight[s.head(s.z).argmax(1)]
    return ((centred * weight).sum(1) / centred.norm(dim=1)).tolist()


def pnml(s: Samples) -> list[float]:
    x, z = (t / t.norm(dim=1, keepdim=True) for t in (s.features.double(), s.z.double()))
    with torch.no_grad():
        p = s.head(z.float()).double().softmax(1)
    projection = (z @ torch.linalg.inv(x.T @ x) * z).sum(1, keepdim=True)
    power = projection / (1 + projection)
    return (-(p / (p + (1 - p) * p**power)).sum(1).log() / math.log(C)).tolist()


@pytest.mark.parametrize("formula", [fdbd, nnguide, nci, pnml])
def test_what_is_taken_from_there_is_the_papers_formula(samples: Samples, formula: Callable[[Samples], Any]) -> None:
    (score,) = scores_named([formula.__name__])
    before = {key: value.clone() for key, value in samples.head.state_dict().items()}
    value = samples.scores(score)
    torch.testing.assert_close(value, torch.tensor(formula(samples)), rtol=1e-4, atol=1e-4)
    assert not value.requires_grad
    assert all(torch.equal(new, before[key]) for key, new in samples.head.state_dict().items())


def test_kl_matching_by_scipy(samples: Samples) -> None:
    (score,) = scores_named(["kl_matching"])
    probs, predicted = samples.logits.softmax(-1), samples.logits.argmax(-1)
    typical = torch.stack([probs[predicted == c].mean(0) for c in range(C)]).double().numpy()
    p = samples.head(samples.z).detach().softmax(-1).double().numpy()
    expected = [-min(entropy(row, d) for d in typical) for row in p]
    torch.testing.assert_close(samples.scores(score).double(), torch.tensor(expected), rtol=1e-3, atol=1e-5)


def test_settings_reach_the_detector(samples: Samples) -> None:
    near, far, nci = scores_named(["nnguide:k=1", "nnguide:k=100", "nci:alpha=10"])
    assert (samples.scores(near) > samples.scores(far)).all()
    norm = samples.z.abs().sum(-1)
    assert spearmanr(samples.scores(nci), norm).statistic > 0.99
    for spec in ("nnguide:k=0", "nci:alpha=-1"):
        with pytest.raises(ConfigError, match="must be at least"):
            scores_named([spec])
    with pytest.raises(DataError, match="nnguide: .*301"):
        samples.scores(scores_named(["nnguide:k=301"])[0])


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package pytorch_ood.*pip install 'uncertainty_est\[scores\]'"):
        scores_named(["fdbd"])
    names = [score.name for score in scores_named(["all"])]
    assert "fdbd" not in names and "knn" in names
