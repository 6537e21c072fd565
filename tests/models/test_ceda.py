"""CEDA and ACET: their losses, the weight of the outliers, and what the attack may and may not do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import compose_points
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data
from uncertainty_est.launch import run_points
from uncertainty_est.models.acet import ACET
from uncertainty_est.models.ceda import CEDA
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.lenet import LeNet

Batch = tuple[Tensor, Tensor]


class Fixed(nn.Module):
    """Puts out its inputs as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def outliers() -> Batch:
    return 4 * torch.randn(30, 3, generator=torch.Generator().manual_seed(2)), torch.full((30,), -1)


@pytest.mark.parametrize(("kind", "expected"), [("max", math.log(0.6)), ("uniform", -math.log(0.6 * 0.3 * 0.1) / 3)])
def test_golden_losses(kind: str, expected: float) -> None:
    known, unknown = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.3, 0.6, 0.1]]).log()
    batch = {"id": (known, torch.tensor([0])), "ood": (unknown, torch.tensor([-1]))}
    parts = CEDA(Fixed(), ood_weight=2.0, kind=kind).loss(batch)  # type: ignore[arg-type]
    assert parts["ce"].item() == pytest.approx(math.log(3))
    assert parts["confidence"].item() == pytest.approx(2 * expected)


@pytest.mark.parametrize("kind", ["max", "uniform"])
def test_no_item_of_either_stream_is_lost(network: FC, batch: Batch, outliers: Batch, kind: str) -> None:
    parts = CEDA(network, kind=kind).loss({"id": batch, "ood": outliers})
    log_probs = network(outliers[0]).log_softmax(-1)
    expected = log_probs.amax(-1).mean() if kind == "max" else -log_probs.mean()
    torch.testing.assert_close(parts["ce"], F.cross_entropy(network(batch[0]), batch[1]))
    torch.testing.assert_close(parts["confidence"], expected)


@pytest.mark.parametrize("kind", ["max", "uniform"])
def test_descent_lowers_the_confidence_on_outliers(network: FC, batch: Batch, outliers: Batch, kind: str) -> None:
    method = CEDA(network, kind=kind)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.stack(list(method.loss({"id": batch, "ood": outliers}).values())).sum().backward()
        optimizer.step()
    known, unknown = (method.get_ood_scores(x)["max p(y|x)"].mean() for x in (batch[0], outliers[0]))
    assert unknown < 0.35 < known  # 1 / C = 0.25


# ------------------------------------------------------------------------------------------------------------ ACET


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_classifier_the_attack_finds_the_most_confident_point(norm: str) -> None:
    """Two classes and f(u) = (w u, 0): the confidence grows with |w u|, so that it moves along sign(w) or w."""
    weight = torch.tensor([3.0, -4.0])

    class Linear(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return torch.stack([u @ weight, torch.zeros(len(u))], -1)

    z = torch.tensor([[0.1, 0.02], [-0.5, 0.7]])
    method = ACET(Linear(), epsilon=0.5, norm=norm, step_size=0.05, box=None)  # type: ignore[arg-type]
    along = weight.sign() if norm == "linf" else weight / 5
    side = torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(method.outliers(z), z + 0.5 * side * along, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_images_stay_in_ball_and_box_in_raw_units_and_are_more_confident(norm: str) -> None:
    torch.manual_seed(0)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    network = LeNet(data_shape=[3, 12, 12], num_classes=4)
    method = ACET(network, epsilon=0.3, norm=norm, steps=10, mean=mean, std=std).train()
    raw = torch.rand(6, 3, 12, 12)
    raw[0] = raw[0].round()  # corners of the box
    m, s = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    z = (raw - m) / s
    with torch.inference_mode():  # as in validation
        found = method.outliers(z)
    assert network.training and all(p.grad is None for p in network.parameters())
    u = found * s + m
    assert u.min() >= -1e-6 and u.max() <= 1 + 1e-6
    offset = (u - raw).flatten(1)
    assert (offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)).max() <= 0.3 + 1e-5
    before, after = (network(x).softmax(-1).amax(-1) for x in (z, found.clone()))
    assert (after >= before - 1e-6).all() and after.mean() > before.mean()


def test_the_attack_is_made_in_eval_mode_and_the_loss_in_training_mode(batch: Batch, outliers: Batch) -> None:
    modes = []

    class Recording(FC):
        def features(self, x: Tensor) -> Tensor:
            modes.append((self.training, len(x)))
            return super().features(x)

    method = ACET(Recording(data_shape=[3], num_classes=4), steps=2, box=None).train()
    method.loss({"id": batch, "ood": outliers})
    assert modes == [(False, 30)] * 3 + [(True, 70)]


def test_a_ball_of_no_size_is_ceda(network: FC, batch: Batch, outliers: Batch) -> None:
    both = {"id": batch, "ood": outliers}
    for norm in ("linf", "l2"):
        method = ACET(network, epsilon=0.0, norm=norm, steps=3, box=None, warmup_epochs=0)
        for name, part in CEDA(network).loss(both).items():
            torch.testing.assert_close(method.loss(both)[name], part)


def test_the_weight_is_small_in_the_first_epochs_and_full_in_validation(
    network: FC, batch: Batch, outliers: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ACET(network, ood_weight=2.0, steps=1, box=None)
    weights = []
    for epoch in range(5):
        monkeypatch.setattr(ACET, "current_epoch", epoch)
        loss = method.loss({"id": batch, "ood": outliers})["confidence"]
        validation = method.validate_batch({"id": batch, "ood": outliers})[0]["confidence"]
        weights.append((loss / validation).item())
    assert weights == pytest.approx([0.0005] * 3 + [1.0] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mean"}, "kind must be one of 'max', 'uniform', got 'mean'"),
        ({"ood_weight": -1.0}, "ood_weight must be at least 0"),
        ({"norm": "l1"}, "norm must be one of 'linf', 'l2', got 'l1'"),
        ({"step_size": 0.0}, "step_size positive"),
        ({"box": [1.0, 0.0]}, "box must be the least and the greatest raw value"),
        ({"std": [0.5, 0.0]}, "std must be positive"),
    ],
)
def test_senseless_arguments(network: FC, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACET(network, **arguments)


@pytest.mark.slow
def test_near_noise_only_acet_is_uncertain_under_attack(tmp_path: Path) -> None:
    """Both know uniform noise itself; the most confident points around it are what ACET alone was shown."""
    attacked = {}
    for model in ("img_ceda", "img_acet"):
        (results,) = run_points(
            compose_points(
                "dataset=digits",
                f"model={model}",
                "network=lenet_wide",
                "fixed.model_config.network.hidden_dims=[64]",
                "fixed.ood_dataset=uniform_noise",
                "fixed.test_ood_datasets=[]",
                "fixed.trainer_config.max_epochs=12",
                "fixed.trainer_config.enable_progress_bar=false",
                "trainer=cpu",
                "logger=none",
                f"fixed.output_folder={tmp_path}",
            )
        )
        assert results["classification"]["Accuracy"] > 90
        trained = checkpoints.load(Path(results["run_dir"]))
        data = build_data(trained.fixed)
        data.setup()
        assert data.ood_source is not None and isinstance(trained.method, CEDA)
        noise = data.transform(data.ood_source.split("test").x[:200])
        attack = ACET(trained.method.network, steps=40, mean=0.5, std=0.5)
        confidence = [trained.method.get_ood_scores(x)["max p(y|x)"].mean() for x in (noise, attack.outliers(noise))]
        assert confidence[0] < 0.2
        attacked[model] = confidence[1]
    assert attacked["img_acet"] < 0.25 < attacked["img_ceda"] - 0.1
