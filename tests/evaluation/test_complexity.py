"""Parameters and operations of networks whose numbers can be counted by hand."""

from __future__ import annotations

import torch

from uncertainty_est.evaluation.complexity import Counter, complexity, complexity_table
from uncertainty_est.evaluation.tables import RunInfo
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.mc_dropout import MCDropout
from uncertainty_est.networks.fc import FC

MULTIPLY_ADDS = 3 * 8 + 8 * 5 + 5 * 4
X = torch.zeros(7, 3)


def network() -> FC:
    return FC(data_shape=[3], num_classes=4, hidden_dims=[8, 5], dropout=0.5)


def test_counts_by_hand_of_one_input() -> None:
    assert complexity(CEBaseline(network()), X) == {
        "Parameters": MULTIPLY_ADDS + 8 + 5 + 4,
        "Buffers": 0,
        "FLOPs": 2 * MULTIPLY_ADDS,
    }


def test_every_pass_is_counted() -> None:
    assert complexity(MCDropout(network(), num_samples=6), X)["FLOPs"] == 6 * 2 * MULTIPLY_ADDS


def test_the_table_has_a_row_for_each_number() -> None:
    table = complexity_table(RunInfo("r", "CEBaseline", "c", "d", 1, "r"), CEBaseline(network()), X)
    assert dict(zip(table["Metric"], table["Value"], strict=True)) == complexity(CEBaseline(network()), X)


def test_gradients_with_respect_to_the_input_are_counted() -> None:
    x, net = X[:1].clone().requires_grad_(), network().eval().requires_grad_(False)
    with Counter() as counter:
        torch.autograd.grad(net(x).logsumexp(-1).sum(), x)
    assert counter.total == 2 * 2 * MULTIPLY_ADDS
