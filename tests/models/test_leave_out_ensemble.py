"""Leave-out ensembles: closed forms of loss and score, the cut of the classes, and assembly from single folds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import Trained, compose_points, quick_overrides
from uncertainty_est import checkpoints
from uncertainty_est.errors import ConfigError, NotFittedError
from uncertainty_est.launch import run_points
from uncertainty_est.losses.outlier import entropy_margin, max_log_prob, softmax_entropy
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.leave_out_ensemble import LeaveOutEnsemble, certainty, cut_classes
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.wide_resnet import WideResNet

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def make() -> partial[FC]:
    torch.manual_seed(0)
    return partial(FC, data_shape=[3], num_classes=4, hidden_dims=[16], activation="tanh")


# ----------------------------------------------------------------------------------------------------- closed forms


def test_golden_loss() -> None:
    known, unknown = torch.tensor([[2.0, 0.0, 0.0]]).double(), torch.tensor([[0.0, 1.0, 0.0]]).double()
    assert softmax_entropy(known).item() == pytest.approx(0.6655726818986877, abs=1e-14)
    assert softmax_entropy(unknown).item() == pytest.approx(0.9753278291662221, abs=1e-14)
    loss = F.cross_entropy(known, torch.tensor([0])) + 0.2 * entropy_margin(known, unknown, 0.4)
    assert loss.item() == pytest.approx(0.2575937367683778, abs=1e-14)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.99439554723613), (1000.0, -1.9532252672166919)])
def test_golden_score_of_a_member(temperature: float, expected: float) -> None:
    logits = torch.tensor([[10.0, 2, 1, 0, -1, -2, -3, -4]])
    for f in (logits, logits + 50, F.pad(logits, (1, 1), value=-torch.inf)):  # shifts and absent classes do not matter
        assert certainty(f, temperature).item() == pytest.approx(expected, abs=1e-13)


def test_the_margin_is_between_means_and_its_gradient_right() -> None:
    generator = torch.Generator().manual_seed(0)
    known, unknown = (3 * torch.randn(n, 4, generator=generator).double() for n in (5, 3))
    known.requires_grad_(), unknown.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, g: entropy_margin(f, g, 0.4), (known, unknown))
    entropies = [torch.distributions.Categorical(logits=f).entropy().mean() for f in (known, unknown)]
    torch.testing.assert_close(entropy_margin(known, unknown, 0.4), 0.4 + entropies[0] - entropies[1])
    saturated = torch.tensor([[500.0, 0.0]], requires_grad=True)  # of which a probability is exactly 0
    softmax_entropy(saturated).sum().backward()
    assert saturated.grad is not None and (saturated.grad == 0).all()


# ------------------------------------------------------------------------------------------------------------ folds


@pytest.mark.parametrize(("classes", "folds"), [(10, 5), (100, 5), (7, 3), (3, 3)])
def test_folds_are_a_partition_into_nearly_equal_parts(classes: int, folds: int) -> None:
    cut = cut_classes(classes, folds, 3)
    sizes = torch.bincount(cut, minlength=folds)
    assert len(sizes) == folds and sizes.sum() == classes and sizes.max() - sizes.min() <= 1
    assert torch.equal(cut, cut_classes(classes, folds, 3))
    assert classes < 10 or not torch.equal(cut, cut_classes(classes, folds, 4))


def test_every_class_lacks_one_vote_and_the_mean_sums_to_one(make: partial[FC], batch: Batch) -> None:
    ensemble = LeaveOutEnsemble(make, 4, num_folds=3)
    assert [member.head.out_features for member in ensemble.members] == [2, 3, 3]
    votes = ensemble.member_logits(batch[0]).softmax(-1)
    assert votes.shape == (3, 40, 4)
    left_out = ensemble.class_folds == torch.arange(3).unsqueeze(1)
    assert torch.equal(votes.eq(0).all(1), left_out) and (left_out.sum(0) == 1).all()
    for k, member in enumerate(ensemble.members):
        torch.testing.assert_close(votes[k][:, ~left_out[k]], member(batch[0]).softmax(-1))
    probs = ensemble.classify(batch[0])
    torch.testing.assert_close(probs, votes.mean(0))
    torch.testing.assert_close(probs.sum(-1), torch.ones(40))


def test_a_class_can_win_against_the_member_that_lacks_it() -> None:
    ensemble = LeaveOutEnsemble(partial(FC, data_shape=[3], hidden_dims=[4]), 3, num_folds=3)
    wanted = 1
    with torch.no_grad():
        for member, slots in zip(ensemble.members, ensemble.slots(), strict=True):
            member.head.weight.zero_()
            member.head.bias.zero_()
            if slots[wanted] < 2:
                member.head.bias[slots[wanted]] = 3
    assert (ensemble.classify(torch.randn(5, 3)).argmax(-1) == wanted).all()


# ------------------------------------------------------------------------------------------------------------ score


def test_without_step_and_temperature_it_is_confidence_less_entropy(make: partial[FC], batch: Batch) -> None:
    ensemble = LeaveOutEnsemble(make, 4, num_folds=2, temperature=1.0, epsilon=0.0)
    expected = torch.zeros(40, dtype=torch.float64)
    for member in ensemble.members:
        probs = member(batch[0]).detach().double().softmax(-1)
        entropy = torch.distributions.Categorical(probs=probs).entropy()
        expected += probs.amax(-1) - entropy - (1 / 2 - math.log(2))
    scores = ensemble.get_ood_scores(batch[0])
    assert list(scores) == ["ELOC", "max p(y|x)", "Entropy"]
    torch.testing.assert_close(scores["ELOC"].double(), expected, atol=1e-6, rtol=0)


def test_the_step_of_linear_members_is_known_and_zero_slopes_lower_the_input() -> None:
    """Each member's gradient is ``(W_c - sum_j p_j W_j) / T``; a pixel that no weight reads moves by -epsilon / std."""
    torch.manual_seed(0)
    std = [0.2, 0.5, 0.25]
    ensemble = LeaveOutEnsemble(lambda num_classes: Linear(12, num_classes), 6, 3, temperature=10.0, std=std)
    x = torch.randn(9, 3, 2, 2)
    clean, gradient = ensemble._clean_and_gradient(x)
    seen: list[Tensor] = []
    for member in ensemble.members:
        member.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ensemble._score_at(x, gradient, 0.01)
    step = 0.01 / torch.tensor(std).view(3, 1, 1)
    for k, member in enumerate(ensemble.members):
        weight = member.head.weight.detach()
        logits = x.flatten(1) @ weight.T
        p = (logits / 10).softmax(-1)
        expected = (weight[logits.argmax(-1)] - p @ weight).view_as(x) / 10
        torch.testing.assert_close(gradient[k], expected, atol=1e-6, rtol=1e-4)
        assert (gradient[k][:, 0, 0, 0] == 0).all()
        torch.testing.assert_close(seen[k], x + step * torch.where(expected > 0, 1.0, -1.0))
        raised, before = (max_log_prob(member(z) / 10) for z in (seen[k], x))
        assert (raised > before - 1e-6).all() and raised.mean() > before.mean()
    assert clean.shape == (3, 9, 6) and not clean.requires_grad


class Linear(nn.Module):
    """``f = W x``, with no weight for the first input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs, bias=False)
        with torch.no_grad():
            self.head.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_keep_their_digits_and_leave_no_gradient(make: partial[FC], batch: Batch, mode: type) -> None:
    ensemble = LeaveOutEnsemble(make, 4, num_folds=2)
    with mode():
        prediction = ensemble.predict(batch[0])
    assert (prediction.scores["ELOC"] > 0).all() and len(prediction.scores["ELOC"].unique()) == 40
    assert not prediction.probs.requires_grad and all(p.grad is None for p in ensemble.parameters())


def test_it_chooses_epsilon_on_outliers(make: partial[FC], batch: Batch) -> None:
    ensemble = LeaveOutEnsemble(make, 4, num_folds=2, epsilon=[0.0, 0.05, 0.5])
    assert ensemble.needs_val_ood
    with pytest.raises(NotFittedError, match="no epsilon"):
        ensemble.predict(batch[0])
    outliers = torch.randn(25, 3, generator=torch.Generator().manual_seed(5))
    ensemble.tune([batch], {"a": [(outliers, torch.zeros(25))]})
    aurocs = {}
    for epsilon in (0.0, 0.05, 0.5):
        single = LeaveOutEnsemble(make, 4, num_folds=2, epsilon=epsilon)
        single.load_state_dict(ensemble.state_dict() | {"epsilon": single.epsilon})
        known, unknown = (single.get_ood_scores(z)["ELOC"].double() for z in (batch[0], outliers))
        aurocs[epsilon] = (known.unsqueeze(1) > unknown).double().mean().item()
    assert ensemble.epsilon.item() == max(aurocs, key=lambda epsilon: aurocs[epsilon])


# --------------------------------------------------------------------------------------------------------- training


def test_every_member_has_the_loss_and_gradient_that_it_would_have_alone(make: partial[FC], batch: Batch) -> None:
    x, y = batch
    ensemble = LeaveOutEnsemble(make, 4, num_folds=3, margin=3.0)
    parts = ensemble.loss({"id": batch})
    torch.stack(list(parts.values())).sum().backward()
    total = 0.0
    for k, member in enumerate(ensemble.members):
        together = member.head.weight.grad.clone()
        member.zero_grad()
        own = [c for c in range(4) if ensemble.class_folds[c] != k]
        inside = torch.isin(y, torch.tensor(own))
        local = torch.tensor([own.index(c) for c in y[inside].tolist()])
        known, unknown = member(x[inside]), member(x[~inside])
        entropies = [torch.distributions.Categorical(logits=f).entropy().mean() for f in (known, unknown)]
        loss = F.cross_entropy(known, local) + 0.2 * (3.0 + entropies[0] - entropies[1])
        loss.backward()
        total += loss.item()
        torch.testing.assert_close(member.head.weight.grad, together)
    assert sum(part.item() for part in parts.values()) == pytest.approx(total, rel=1e-5)
    validated, probs = ensemble.validate_batch({"id": batch})
    for name, part in parts.items():
        torch.testing.assert_close(validated[name], part)
    torch.testing.assert_close(probs, ensemble.classify(x))


def test_where_the_hinge_is_off_only_the_cross_entropy_is_left(make: partial[FC], batch: Batch) -> None:
    ensemble = LeaveOutEnsemble(make, 4, num_folds=2, fold=0)
    x, y = batch
    inside = (ensemble.class_folds != 0)[y]
    parts = ensemble.loss({"id": (x[inside], y[inside])})  # no outliers
    assert parts["margin"] == 0
    torch.stack(list(parts.values())).sum().backward()
    gradient = ensemble.members[0].head.weight.grad.clone()
    met = LeaveOutEnsemble(make, 4, num_folds=2, fold=0, margin=0.0, margin_weight=5.0)
    met.load_state_dict(ensemble.state_dict())
    with torch.no_grad():  # outliers at the origin get uniform predictions, whose entropy nothing exceeds
        for name, parameter in met.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    ensemble.load_state_dict(met.state_dict())
    ensemble.zero_grad()
    ensemble.loss({"id": (x[inside], y[inside])})["ce"].backward()
    gradient = ensemble.members[0].head.weight.grad
    with_outliers = torch.cat([x[inside], torch.zeros(4, 3)]), torch.cat([y[inside], y[~inside][:4]])
    parts = met.loss({"id": with_outliers})
    torch.stack(list(parts.values())).sum().backward()
    assert parts["margin"] == 0
    torch.testing.assert_close(met.members[0].head.weight.grad, gradient)


def test_batch_normalisation_sees_each_part_alone_and_a_single_sample_never() -> None:
    torch.manual_seed(0)
    ensemble = LeaveOutEnsemble(partial(WideResNet, data_shape=[1, 4, 4], depth=10, widen_factor=1), 4, 2).train()
    sizes: list[int] = []
    for member in ensemble.members:
        member.stem.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    first, second = (torch.nonzero(ensemble.class_folds == k).flatten()[0].item() for k in (0, 1))
    y = torch.tensor([first, second, first, second, first])
    ensemble.loss({"id": (torch.randn(5, 1, 4, 4), y)})
    assert sizes == [2, 3, 3, 2]
    sizes.clear()
    parts = ensemble.loss({"id": (torch.randn(3, 1, 4, 4), torch.tensor([first, first, second]))})
    torch.stack(list(parts.values())).sum().backward()
    assert sizes == [2, 2] and parts["margin"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ensemble.parameters())
    assert all((p.grad == 0).all() for p in ensemble.members[0].parameters())


# --------------------------------------------------------------------------------------------------------- assembly


def test_runs_of_single_folds_make_the_joint_ensemble_in_any_order(make: partial[FC], batch: Batch) -> None:
    joint = LeaveOutEnsemble(make, 4, num_folds=3)
    singles = [LeaveOutEnsemble(make, 4, num_folds=3, fold=k) for k in range(3)]
    for k in (2, 0, 1):
        singles[k].members[0].load_state_dict(joint.members[k].state_dict())
    assembled = LeaveOutEnsemble(make, 4, num_folds=3)
    assembled.init_from([singles[k].state_dict() for k in (1, 2, 0)])
    assert list(assembled.state_dict()) == list(joint.state_dict())
    for name, value in joint.state_dict().items():
        assert torch.equal(assembled.state_dict()[name], value), name
    again = LeaveOutEnsemble(make, 4, num_folds=3, epsilon=0.1)
    again.init_from([joint.state_dict()])  # a run of all folds, to be scored with another epsilon
    assert again.epsilon.item() == 0.1 and torch.equal(again.classify(batch[0]), joint.classify(batch[0]))


def test_runs_that_make_no_ensemble_are_named(make: partial[FC]) -> None:
    joint = LeaveOutEnsemble(make, 4, num_folds=3)
    states = [LeaveOutEnsemble(make, 4, num_folds=3, fold=k).state_dict() for k in range(3)]
    with pytest.raises(ConfigError, match=r"fixed\.init_from: fold 1 is missing; give one run of each fold of 0, 1, 2"):
        joint.init_from([states[0], states[2]])
    with pytest.raises(ConfigError, match=r"fixed\.init_from: fold 0, 2 is given twice"):
        joint.init_from([*states, states[2], states[0]])
    with pytest.raises(ConfigError, match=r"fixed\.init_from: fold 1 is not asked for"):
        LeaveOutEnsemble(make, 4, num_folds=3, fold=0).init_from(states[:2])
    with pytest.raises(ConfigError, match=r"run number 1 is no leave-out ensemble"):
        joint.init_from([states[0], CEBaseline(make()).state_dict()])
    other = LeaveOutEnsemble(make, 4, num_folds=2).state_dict()
    with pytest.raises(ConfigError, match=r"run number 0 cuts the classes into other folds"):
        joint.init_from([other])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "num_folds and num_classes must be at least 2, got 1 and 4"),
        ({"fold": 4}, "fold must be one of 0 to 3, or null for all, got 4"),
        ({"margin": -0.1}, "margin and margin_weight must be at least 0 and temperature positive"),
        ({"temperature": 0.0}, "margin and margin_weight must be at least 0 and temperature positive"),
        ({"epsilon": [0.1, -1.0]}, "epsilon must be at least 0"),
    ],
)
def test_senseless_arguments(make: partial[FC], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeaveOutEnsemble(make, 4, **arguments)


def test_two_classes_are_too_few_to_leave_one_out() -> None:
    (fixed,) = compose_points("dataset=two_moons", "model=fc_leave_out_ensemble", "trainer=cpu", "logger=none")
    ensemble = LeaveOutEnsemble(partial(FC, data_shape=[2], hidden_dims=[4]), fixed["num_classes"])
    with pytest.raises(ConfigError, match=r"fixed\.dataset: a leave-out ensemble needs at least 3 classes"):
        ensemble.setup("fit")


def test_one_fold_a_run_by_the_grid_and_their_assembly(
    trained: Callable[[str], Trained], small_data: Callable[[str], Path], tmp_path: Path
) -> None:
    overrides = quick_overrides("fc_leave_out_ensemble", small_data("fc"), tmp_path)
    points = compose_points(
        *overrides, "grid=fold", "grid.model_config.fold.options=[2,0,1]", "fixed.trainer_config.max_epochs=1"
    )
    assert [point["model_config"]["fold"] for point in points] == [2, 0, 1]
    folders = [results["run_dir"] for results in run_points(points)]
    start = [f"fixed.init_from=[{','.join(folders)}]", "fixed.trainer_config.max_epochs=0"]
    (results,) = run_points(compose_points(*overrides, *start))
    assembled = checkpoints.load(Path(results["run_dir"])).method.state_dict()
    for folder, k in zip(folders, (2, 0, 1), strict=True):
        single = checkpoints.load(Path(folder)).method.state_dict()
        assert single["left_out"].tolist() == [k]
        for name, value in single.items():
            if name.startswith("members.0."):
                assert torch.equal(assembled[name.replace("members.0.", f"members.{k}.")], value)
    joint = trained("fc_leave_out_ensemble").run.method.state_dict()
    assert {name: value.shape for name, value in assembled.items()} == {n: v.shape for n, v in joint.items()}
