"""Projected ascent: closed-form maxima, the rule of the step size, and what a step may never do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.samplers.ascent import ascend

DIRECTIONS = ["raw", "sign", "l2"]


def unchanged(x: Tensor) -> Tensor:
    return x


def quadratic(x: Tensor) -> Tensor:
    scale = torch.tensor([1.0, 3.0], dtype=x.dtype)
    return -(scale * (x - 0.5).square()).sum(-1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_it_finds_the_maximum(direction: str) -> None:
    x0 = torch.randn(50, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = ascend(quadratic, x0, unchanged, 300, 0.1, direction)
    # Signs only lead along diagonals and the axes' creases; the others reach the maximum to many digits.
    torch.testing.assert_close(found, torch.full_like(found, 0.5), atol=0.05 if direction == "sign" else 1e-6, rtol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_linear_objective_over_a_box_is_greatest_in_its_corner(direction: str) -> None:
    weight = torch.tensor([2.0, -1.0, 0.5])
    found = ascend(lambda x: x @ weight, torch.full((4, 3), 0.4), lambda x: x.clamp(0, 1), 60, 0.1, direction)
    assert torch.equal(found, torch.tensor([1.0, 0.0, 1.0]).expand(4, 3))


def test_steps_grow_by_a_tenth_and_halve_on_a_worse_point() -> None:
    """g(x) = -|x - 1| from 0 with steps of 0.4: taken 0.4, 0.44; 0.484 overshoots to 1.324, worse; 0.242 to 1.082."""
    visited = []

    def objective(x: Tensor) -> Tensor:
        visited.append(x.item())
        return -(x - 1).abs().squeeze(-1)

    found = ascend(objective, torch.zeros(1, 1, dtype=torch.double), unchanged, 4, 0.4)
    assert visited == pytest.approx([0.0, 0.4, 0.84, 1.324, 1.082])
    assert found.item() == pytest.approx(1.082)


def test_each_sample_has_its_own_step_and_the_batch_changes_nothing() -> None:
    x0 = 5 * torch.randn(20, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    whole = ascend(quadratic, x0, unchanged, 12, 1.0)
    alone = torch.cat([ascend(quadratic, x, unchanged, 12, 1.0) for x in x0.split(1)])
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_step_makes_it_worse_and_all_stay_feasible(direction: str) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0)).double()
    x0 = torch.randn(30, 2, dtype=torch.double)

    def ball(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1)

    values = [network(ascend(network, x0, ball, steps, 5.0, direction)) for steps in (0, 1, 5, 25)]
    torch.testing.assert_close(values[0], network(ball(x0)))
    for before, after in zip(values, values[1:], strict=False):
        assert (after >= before).all()
    assert values[-1].mean() > values[0].mean()
    assert ascend(network, x0, ball, 25, 5.0, direction).norm(dim=-1).max() <= 1 + 1e-12
    assert all(p.grad is None for p in network.parameters())


def test_flat_and_undefined_points_are_survived() -> None:
    def objective(x: Tensor) -> Tensor:
        return torch.where(x > 0.5, torch.nan, 0 * x).squeeze(-1)

    x0 = torch.tensor([[0.0], [0.4]])
    for direction in DIRECTIONS:
        assert torch.equal(ascend(objective, x0, unchanged, 3, 1.0, direction), x0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_grad_mode_and_in_full_precision_under_autocast(mode: type) -> None:
    weight = torch.tensor([[1.0, 1e-4]], requires_grad=True)
    types = []

    def objective(x: Tensor) -> Tensor:
        value = (x @ weight.T).squeeze(-1)
        types.append(value.dtype)
        return value

    with mode(), torch.autocast("cpu", torch.bfloat16):
        found = ascend(objective, torch.zeros(1, 2), unchanged, 2, 1.0)
    assert set(types) == {torch.float32} and not found.requires_grad and weight.grad is None
    torch.testing.assert_close(found, torch.tensor([[2.1, 2.1e-4]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps must be at least 0 and step_size positive, got -1 and 0.1"),
        ({"step_size": 0.0}, "got 5 and 0.0"),
        ({"direction": "up"}, "direction must be one of 'raw', 'sign', 'l2', got 'up'"),
    ],
)
def test_what_makes_no_sense(change: dict[str, object], message: str) -> None:
    arguments = {"steps": 5, "step_size": 0.1} | change
    with pytest.raises(ValueError, match=message):
        ascend(quadratic, torch.zeros(1, 2), unchanged, **arguments)  # type: ignore[arg-type]
