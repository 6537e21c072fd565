"""Glow and RealNVP as methods: what they learn of real digits, samples, classes, and data on the wrong scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.data.sources.image import Digits
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.normalizing_flow.glow import Glow
from uncertainty_est.models.normalizing_flow.image import ImageFlowMethod
from uncertainty_est.models.normalizing_flow.real_nvp import RealNVP

Make = Callable[..., ImageFlowMethod]
SHAPE = (1, 8, 8)
LEVELS = 17

SMALL: dict[str, Make] = {
    "glow": lambda **more: Glow(SHAPE, num_levels=2, num_steps=4, hidden_channels=48, levels=LEVELS, **more),
    "real_nvp": lambda **more: RealNVP(SHAPE, num_blocks=1, hidden_channels=16, levels=LEVELS, **more),
}


@pytest.fixture(params=SMALL)
def make(request: pytest.FixtureRequest) -> Make:
    torch.manual_seed(0)
    return SMALL[request.param]


def digits(split: Any, classes: int = 10) -> tuple[Tensor, Tensor]:
    part = Digits(shape=list(SHAPE), split_seed=1).split(split)
    chosen = part.y < classes
    return part.x[chosen].float() / 255, part.y[chosen]


def train(method: ImageFlowMethod, x: Tensor, y: Tensor, steps: int, lr: float = 2e-3) -> None:
    optimizer = torch.optim.AdamW(method.parameters(), lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(0)
    method.train()
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=order)
        loss = sum(method.loss({"id": (x[chosen], y[chosen])}).values())
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    method.eval()


def bits_per_dim_of_independent_pixels() -> float:
    """Test digits under the best distribution without dependence: each pixel's own frequencies of the levels."""
    known, new = ((digits(split)[0].flatten(1) * (LEVELS - 1)).round().long() for split in ("train", "test"))
    counts = F.one_hot(known, LEVELS).sum(0) + 0.1  # levels that a pixel never had are possible
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return -log_p.gather(1, new.T).mean().item()


@pytest.mark.slow
def test_a_flow_learns_what_pixels_have_to_do_with_each_other(make: Make) -> None:
    method = make()
    train(method, *digits("train"), steps=250)
    test = digits("test")[0]
    scores = method.get_ood_scores(test)["p(x)"].double().numpy()
    bits = method.quantities({"p(x)": scores})["Bits per dim"].mean()
    baseline = bits_per_dim_of_independent_pixels()
    assert 2.4 < baseline < 2.5 < math.log2(LEVELS)
    assert 1.5 < bits < baseline - 0.15

    # Fresh noise, as in training, gives the same bound: the one fixed draw flatters nothing.
    method.train()
    torch.manual_seed(1)
    with torch.no_grad():
        fresh = -torch.stack([method.log_prob(test) for _ in range(5)]).mean().item() / (64 * math.log(2))
    method.eval()
    assert bits == pytest.approx(fresh, abs=0.03)

    samples = method.sample(500, torch.Generator().manual_seed(0))
    mean, mean_of_samples = test.mean(0).flatten().numpy(), samples.mean(0).flatten().numpy()
    assert np.corrcoef(mean, mean_of_samples)[0, 1] > 0.95
    assert np.abs(mean - mean_of_samples).max() < 0.15
    # Samples are about as likely as data, and data with independent pixels are not.
    own = method.get_ood_scores(samples)["p(x)"].double().mean().item()
    mixed = torch.stack([test[torch.randperm(len(test)), :, i, j] for i in range(8) for j in range(8)], -1)
    shuffled = method.get_ood_scores(mixed.view(-1, *SHAPE))["p(x)"].double().mean().item()
    assert abs(own - scores.mean()) < 0.5 * (scores.mean() - shuffled)


@pytest.mark.parametrize("discriminative", [True, False])
def test_one_flow_a_class_tells_digits_apart(make: Make, discriminative: bool) -> None:
    method = make(num_classes=2, discriminative=discriminative)
    x, y = digits("train", classes=2)
    train(method, x, y, steps=25)
    test, labels = digits("test", classes=2)
    prediction = method.predict(test)
    assert prediction.probs is not None
    assert prediction.probs.shape == (len(test), 2)
    assert (prediction.probs.argmax(1) == labels).float().mean() > 0.9
    log_p = method.log_prob(test)
    torch.testing.assert_close(prediction.scores["p(x)"], log_p.logsumexp(1) - math.log(2))
    assert method.sample(3, torch.Generator().manual_seed(0)).shape == (3, *SHAPE)


def test_one_flow_has_no_classes(make: Make) -> None:
    method = make().eval()
    x = digits("test")[0][:5]
    assert method.can_sample
    assert method.log_prob(x).shape == (5, 1)
    assert method.classify(x) is None


def test_scores_outside_the_range_are_the_lowest_and_finite(make: Make) -> None:
    method = make(num_classes=2)
    x = digits("test")[0][:5]
    scores = method.get_ood_scores(torch.cat([x, 255 * x, -x]))["p(x)"]
    assert scores.isfinite().all()
    assert (scores[5:] == torch.finfo(torch.float32).min).all()
    assert (scores[:5] > -1e4).all()


def test_scoring_in_half_precision_is_exact(make: Make) -> None:
    method = make()
    x = digits("test")[0][:5]
    expected = method.get_ood_scores(x)["p(x)"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.get_ood_scores(x)["p(x)"], expected)


def test_the_first_batch_must_be_on_the_scale_of_the_flow(make: Make) -> None:
    method = make()
    x, y = digits("test")
    method.on_train_batch_start({"id": (x, y)}, 0)
    with pytest.raises(
        ConfigError, match=r"^fixed\.transform: \w+ takes images in \[0, 1\], got values from -1 to 1; set"
    ):
        method.on_train_batch_start({"id": (2 * x - 1, y)}, 0)
