"""Flow-contrastive estimation: its value at the optimum, who moves in which direction, and whose turn it is."""

from __future__ import annotations

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from uncertainty_est.data.loader import JointLoader, TensorLoader
from uncertainty_est.data.source import Split
from uncertainty_est.densities.coupling import CouplingFlows
from uncertainty_est.densities.radial import RadialFlows
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.ebm.flow_contrastive import FlowContrastive
from uncertainty_est.networks.fc import FC

FLOW = partial(CouplingFlows, num_layers=3, hidden_dims=[8])
SLOW, FAST = partial(torch.optim.SGD, lr=0.01), partial(torch.optim.SGD, lr=0.02)


class FlowModel(nn.Module):
    """One logit, the log-density of a flow."""

    def __init__(self, flow: CouplingFlows) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


@pytest.fixture
def method() -> FlowContrastive:
    torch.manual_seed(0)
    network = FC(data_shape=[2], num_classes=1, hidden_dims=[16], activation="silu")
    return FlowContrastive(network, FLOW, [2], optimizer=SLOW, flow_optimizer=FAST)


@pytest.fixture
def x() -> Tensor:
    return 0.5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1)) + 1


def value(method: FlowContrastive, x: Tensor) -> float:
    method.generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return sum(method.loss({"id": (x, torch.zeros(len(x)).long())}).values()).item()  # type: ignore[union-attr]


def fit(method: FlowContrastive, x: Tensor, steps: int = 1) -> None:
    """Steps on one batch with one stream of noise, by Lightning."""
    split = Split(x, torch.zeros(len(x)).long(), torch.arange(len(x)), "all")
    loader = JointLoader(TensorLoader(split, batch_size=len(x)))
    method.on_fit_start = lambda: setattr(method, "generator", torch.Generator().manual_seed(3))  # type: ignore[method-assign]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(method, loader, loader)
    assert trainer.global_step == steps, "one optimizer a step"
    assert "train/loss" in trainer.callback_metrics


def copies(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_where_f_is_the_flows_density_the_value_is_the_priors_entropy(
    method: FlowContrastive, x: Tensor, prior: float
) -> None:
    same = FlowContrastive(FlowModel(method.flow), FLOW, [2], prior=prior)  # type: ignore[arg-type]
    same.flow = method.flow
    entropy = -prior * math.log(prior) - (1 - prior) * math.log(1 - prior)
    assert value(same, x) == pytest.approx(entropy, rel=1e-5)


def test_the_value_is_least_at_the_density_if_the_flow_is_it_too(method: FlowContrastive) -> None:
    """q = p: shifting F away from ln q, up or down, costs; the value at F = ln q is ln 2."""
    data = method.flow.sample(20_000, torch.Generator().manual_seed(7)).detach()
    model = FlowModel(method.flow)
    same = FlowContrastive(model, FLOW, [2])  # type: ignore[arg-type]
    same.flow = method.flow
    shift = torch.zeros((), requires_grad=True)
    tilt = torch.zeros((), requires_grad=True)
    model.forward = lambda inputs: method.flow.log_prob(inputs) + shift + tilt * inputs[:, :1]  # type: ignore[method-assign]
    total = sum(same.loss({"id": (data, torch.zeros(len(data)).long())}).values())
    gradient = torch.autograd.grad(total, [shift, tilt])
    assert torch.stack(gradient).abs().max() < 0.01
    assert total.item() == pytest.approx(math.log(2), rel=1e-5)
    for change in (-0.5, 0.5):
        with torch.no_grad():
            shift.fill_(change)
        assert value(same, data) > math.log(2) + 0.01


def test_the_loss_is_cross_entropy_with_the_prior(method: FlowContrastive, x: Tensor) -> None:
    method.prior = 0.3
    method.generator = torch.Generator().manual_seed(3)
    parts = method.loss({"id": (x, torch.zeros(64).long())})
    with torch.no_grad():
        drawn = method.flow.sample(64, torch.Generator().manual_seed(3))

        def cost(inputs: Tensor, label: int) -> Tensor:
            log_q = method.flow.log_prob(inputs).squeeze(-1) + math.log(0.7)
            logits = torch.stack([log_q, method.log_density(inputs) + math.log(0.3)], dim=-1)
            return nn.functional.cross_entropy(logits, torch.full((len(inputs),), label))

        torch.testing.assert_close(parts["data"], 0.3 * cost(x, 1))
        torch.testing.assert_close(parts["samples"], 0.7 * cost(drawn, 0))


def test_f_lowers_the_value_in_its_turn_and_leaves_the_flow(method: FlowContrastive, x: Tensor) -> None:
    method.threshold = 0.9999
    before, network, flow = value(method, x), copies(method.network), copies(method.flow)
    fit(method, x)
    assert value(method, x) < before
    assert moved(method.network, network)
    assert not moved(method.flow, flow)


def test_the_flow_raises_the_value_in_its_turn_and_leaves_f(method: FlowContrastive, x: Tensor) -> None:
    method.threshold = 1e-9
    with torch.no_grad():  # a constant of about the size of ln q tells some data and some samples
        method.network.head.weight.zero_()
        method.network.head.bias.fill_(method.flow.log_prob(x).median())
    before, network, flow = value(method, x), copies(method.network), copies(method.flow)
    assert (method._accuracy > 0).all()
    fit(method, x)
    assert value(method, x) > before
    assert not moved(method.network, network)
    assert moved(method.flow, flow)


def test_the_flow_learns_through_its_samples_and_its_density(method: FlowContrastive, x: Tensor) -> None:
    parts = method.loss({"id": (x, torch.zeros(64).long())})
    for name in ("data", "samples"):
        gradients = torch.autograd.grad(parts[name], list(method.flow.parameters()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients), name


def test_each_optimizer_warms_up_to_its_own_rate_by_its_own_steps(method: FlowContrastive, x: Tensor) -> None:
    method.warmup_steps, method.threshold = 4, 0.9999
    method._make_scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    rates = []
    method.on_train_batch_start = lambda batch, batch_idx: rates.append(  # type: ignore[method-assign]
        [player.optimizer.param_groups[0]["lr"] for player in method._players]
    )
    fit(method, x, steps=5)
    # One step an epoch: warm-up of a quarter a step, halved after every second one; the flow had no step.
    assert [rate for rate, _ in rates] == pytest.approx([0.0025, 0.005, 0.00375, 0.005, 0.0025])
    assert [rate for _, rate in rates] == pytest.approx([0.005] * 5)


def test_gradients_are_clipped_where_asked(method: FlowContrastive, x: Tensor) -> None:
    method.threshold, method.gradient_clip_val = 0.9999, 1e-3
    before = copies(method.network)
    fit(method, x)
    length = torch.stack([(a - b).norm() for a, b in zip(method.network.parameters(), before, strict=True)]).norm()
    assert length.item() == pytest.approx(0.01 * 1e-3, rel=0.05)


def test_samples_are_the_flows(method: FlowContrastive) -> None:
    drawn = method.sample(10, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, method.flow.sample(10, torch.Generator().manual_seed(3)))
    assert not drawn.requires_grad


def test_both_optimizers_are_needed(method: FlowContrastive) -> None:
    method._make_flow_optimizer = None
    with pytest.raises(ConfigError, match=r"fixed\.model_config\.flow_optimizer: training needs an optimizer"):
        method.configure_optimizers()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": 1.0}, "prior and threshold must lie between 0 and 1"),
        ({"gradient_clip_val": 0.0}, "gradient_clip_val must be positive"),
        ({"flow": partial(RadialFlows, num_layers=2)}, "flow must make CouplingFlows.*got RadialFlows"),
    ],
)
def test_senseless_arguments(arguments: dict, message: str) -> None:
    network = FC(data_shape=[2], num_classes=1, hidden_dims=[4])
    with pytest.raises(ValueError, match=message):
        FlowContrastive(**{"network": network, "flow": FLOW, "data_shape": [2]} | arguments)
