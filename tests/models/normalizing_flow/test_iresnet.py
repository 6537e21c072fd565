"""Invertible residual networks as methods: what they learn, in which ways, samples and classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.conftest import compose_points
from uncertainty_est.checkpoints import load
from uncertainty_est.data.sources.synthetic import Gaussian2D
from uncertainty_est.densities.residual_block import InvertibleResidual
from uncertainty_est.densities.residual_log_det import LogDet, Series
from uncertainty_est.launch import run_points
from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.normalizing_flow.iresnet import ImageIResNet, IResNet
from uncertainty_est.networks.lipschitz import SpectralLayers


def make(**changes: Any) -> IResNet:
    torch.manual_seed(0)
    return IResNet([2], SpectralLayers(0.9, 5), **{"num_blocks": 4, "hidden_dims": [16, 16]} | changes)


def make_image(**changes: Any) -> ImageIResNet:
    torch.manual_seed(0)
    small = {"num_scales": 2, "blocks_per_scale": 2, "hidden_channels": [8], "levels": 4}
    return ImageIResNet([1, 4, 4], SpectralLayers(0.9, 5), **small | changes)


def clusters(n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(2, (n,), generator=generator)
    return 2.0 * y[:, None] - 1 + 0.3 * torch.randn(n, 2, generator=generator), y


def train(method: Any, x: Tensor, y: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    method.train()
    losses = []
    for _ in range(steps):
        loss = sum(method.loss({"id": (x, y)}).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    method.eval()
    return losses


@pytest.mark.parametrize("log_det", ["exact", "series", "roulette"])
def test_every_log_determinant_learns_the_same_density(log_det: str) -> None:
    """The truth: two normals of deviation 0.3, ln 2 + 2 (0.5 ln 2 pi e + ln 0.3) = 1.12 nats."""
    x, y = clusters()
    method = make(log_det=log_det)
    train(method, x, y, 120)
    assert -method.predict(x).scores["p(x)"].mean() < 1.5


def test_series_and_jacobian_agree_in_evaluation() -> None:
    x, y = clusters()
    method = make()
    train(method, x, y, 30)
    exact = method.predict(x).scores["p(x)"]
    # Probes of evaluation are drawn at construction.
    series = make(eval_log_det="series", series=Series(n_eval_terms=40, n_eval_probes=100))
    series.load_state_dict({**series.state_dict(), **method.state_dict()}, strict=True)
    torch.testing.assert_close(series.predict(x).scores["p(x)"], exact, atol=0.1, rtol=0)


def test_blocks_have_probes_of_their_own() -> None:
    probes = [m.probes for m in make(eval_log_det="series").modules() if isinstance(m, LogDet)]
    assert len(probes) == 4
    assert all(not torch.equal(a, b) for a, b in zip(probes, probes[1:], strict=False))


def test_one_density_for_each_class_tells_the_classes_apart() -> None:
    x, y = clusters()
    method = make(num_classes=2, discriminative=False, num_blocks=2)
    train(method, x, y, 40)
    prediction = method.predict(x)
    assert prediction.probs is not None
    assert (prediction.probs.argmax(-1) == y).float().mean() > 0.98


def test_tables_of_any_shape_are_flattened() -> None:
    method = IResNet([1, 2, 3], SpectralLayers(0.9), num_blocks=1)
    assert method.predict(torch.randn(5, 1, 2, 3)).scores["p(x)"].shape == (5,)
    with scoring_mode(method):
        assert method.sample(4, torch.Generator().manual_seed(0)).shape == (4, 1, 2, 3)


def test_samples_come_from_both_clusters_and_from_the_generator_alone() -> None:
    x, y = clusters()
    method = make()
    train(method, x, y, 120)
    before = torch.random.get_rng_state()
    with scoring_mode(method):
        samples = method.sample(2000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    sides = samples.sign().sum(1) / 2
    shares = [(sides == side).float().mean().item() for side in (-1, 1)]
    assert all(share > 0.35 for share in shares)
    torch.testing.assert_close(samples.mean(0), x.mean(0), atol=0.15, rtol=0)


def test_images_have_log_probabilities_of_pixels_and_samples_in_levels() -> None:
    method = make_image()
    x = torch.randint(4, (32, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 3
    losses = train(method, x, torch.zeros(32, dtype=torch.long), 30)
    assert losses[-1] < losses[0]
    scores = method.predict(torch.cat([x, x[:1] - 0.1])).scores["p(x)"]
    assert scores[:-1].max() < 0  # of discrete images, so a probability
    assert scores[-1] == torch.finfo(torch.float32).min
    with scoring_mode(method):
        samples = method.sample(8, torch.Generator().manual_seed(0))
    assert samples.shape == (8, 1, 4, 4)
    torch.testing.assert_close(samples * 3, (samples * 3).round())


@pytest.mark.parametrize("evaluation", ["exact", "series"])
def test_scores_are_the_same_whatever_the_batch_and_whenever_they_are_asked_for(evaluation: str) -> None:
    method = make_image(eval_log_det=evaluation)
    x = torch.randint(4, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 3
    train(method, x, torch.zeros(16, dtype=torch.long), 3)
    scores = method.predict(x).scores["p(x)"]
    assert torch.equal(method.predict(x).scores["p(x)"], scores)
    alone = torch.cat([method.predict(x[i : i + 1]).scores["p(x)"] for i in range(16)])
    torch.testing.assert_close(alone, scores, atol=1e-4, rtol=1e-5)


def test_layers_that_do_not_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="^layers must have a coeff below 1"):
        IResNet([2], SpectralLayers(3.0))


def truth(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Log-density ``[B]`` of standardised points of Gaussian2D: its three normals, scaled."""
    angle = 2 * math.pi * torch.arange(3) / 3
    means = 2 * torch.stack([angle.sin(), angle.cos()], 1)
    normals = Independent(Normal((means - shift) / scale, 0.2 / scale.expand(3, 2)), 1)
    return MixtureSameFamily(Categorical(torch.ones(3)), normals).log_prob(x)


@pytest.mark.slow
def test_the_entropy_of_three_gaussians_is_nearly_reached(tmp_path: Path) -> None:
    """NLL of the test points within 0.2 nats of the truth's, from which one Gaussian is 2.8 away; norms below 1.

    In 120 epochs seeds 1 to 3 came within 0.15. What is left is the price of maps that change slowly: coeff 0.9 leaves
    0.27.
    """
    quiet = ["trainer=cpu", "logger=none", "fixed.trainer_config.enable_progress_bar=false"]
    longer = [
        "fixed.trainer_config.max_epochs=80",
        "fixed.trainer_config.check_val_every_n_epoch=10",
        "fixed.earlystop_config=null",
    ]
    options = ["dataset=gaussian2d", "model=fc_iresnet", *longer, f"fixed.output_folder={tmp_path}"]
    (results,) = run_points(compose_points(*quiet, *options))
    method = load(Path(results["run_dir"])).method
    source = Gaussian2D(shape=[2], test_fraction=0.1, split_seed=1)
    points = source.split("train").x.double()
    shift, scale = points.mean(0).float(), points.std(0, correction=0).float()
    x = (source.split("test").x - shift) / scale
    best = -truth(x, shift, scale).mean().item()
    assert best == pytest.approx(0.0, abs=0.1)  # ln 3 + ln 2 pi e 0.2^2 - 2 ln 1.43
    got = -method.predict(x).scores["p(x)"].mean().item()
    assert best - 0.1 < got < best + 0.2
    assert results["ood"]["anomalous_gaussian2d"]["p(x)"]["AUROC"] > 99
    # Lipschitz in fact, not only by the bound that power iteration approaches from below.
    x = 3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in method.modules():
            if isinstance(block, InvertibleResidual):
                near = x + 1e-2 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
                ratio = (block.residual(x) - block.residual(near)).norm(dim=1) / (x - near).norm(dim=1)
                assert ratio.max() < 0.95**3 * 1.01
