"""The classifier that unlearns certainty: its chains find it, its loss removes it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uncertainty_est.models.ebm.mcmc_entropy import MCMCEntropy, certainty
from uncertainty_est.networks.fc import FC
from uncertainty_est.samplers.sgld import SGLD


class Linear(FC):
    """Logits (x, -x) of the first coordinate: certain far from 0."""

    def __init__(self) -> None:
        super().__init__([2], 2, hidden_dims=[2])
        self.head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        self.head.bias.data.zero_()

    def features(self, x: Tensor) -> Tensor:
        return x


def test_certainty_is_the_negative_entropy(network: FC) -> None:
    logits = network(torch.randn(9, 3))
    expected = -torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(certainty(logits), expected)
    torch.testing.assert_close(certainty(torch.zeros(1, 4)), torch.tensor([-math.log(4)]))
    assert float(certainty(torch.tensor([[1e4, 0.0]]))) == 0.0


def test_chains_move_to_where_a_linear_classifier_is_certain() -> None:
    network = Linear()
    start = torch.tensor([[0.3, 5.0], [-0.3, 5.0], [0.1, -1.0]])
    found = SGLD(steps=50, lr=1.0, std=0.0)(lambda x: certainty(network(x)), start).x
    assert bool((certainty(network(found)) > -0.2).all())
    assert found[:, 0].sign().tolist() == [1, -1, 1]
    torch.testing.assert_close(found[:, 1], start[:, 1], msg="the second coordinate is of no consequence")


def test_a_step_of_training_makes_what_was_found_less_certain(network: FC) -> None:
    torch.manual_seed(0)
    method = MCMCEntropy(network, SGLD(steps=0), low=-3.0, high=3.0)
    x, y = torch.randn(40, 3), torch.randint(4, (40,))
    parts = method.loss({"id": (x, y)})
    assert list(parts) == ["ce", "entropy"]
    torch.manual_seed(1)
    start = torch.empty_like(x).uniform_(-3, 3)
    torch.manual_seed(1)
    part = method.loss({"id": (x, y)})["entropy"]
    torch.testing.assert_close(part, certainty(network(start)).mean())
    part.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter -= 0.05 * parameter.grad
    assert float(certainty(network(start)).mean().detach()) < float(part.detach())


def test_its_weight_multiplies_and_zero_is_plain_cross_entropy(network: FC) -> None:
    batch = {"id": (torch.randn(40, 3), torch.randint(4, (40,)))}
    values = []
    for weight in (1.0, 2.5):
        torch.manual_seed(3)
        values.append(MCMCEntropy(network, SGLD(steps=1), pxsgld=weight).loss(batch)["entropy"])
    torch.testing.assert_close(values[1], 2.5 * values[0])
    assert list(MCMCEntropy(network, SGLD(), pxsgld=0.0).loss(batch)) == ["ce"]


def test_sampling_leaves_modes_and_gradients_alone(network: FC) -> None:
    method = MCMCEntropy(network, SGLD(steps=3))
    method.train()
    network.blocks[1].eval()
    modes = [m.training for m in method.modules()]
    method.loss({"id": (torch.randn(5, 3), torch.randint(4, (5,)))})
    assert [m.training for m in method.modules()] == modes
    assert all(p.grad is None for p in method.parameters())


def test_the_headline_is_what_was_trained(network: FC) -> None:
    scores = MCMCEntropy(network, SGLD()).predict(torch.randn(6, 3)).scores
    assert list(scores) == ["Entropy", "max p(y|x)", "p(x)", "Max logit"]


@pytest.mark.parametrize(("arguments", "named"), [({"pxsgld": -1.0}, "pxsgld"), ({"low": 1.0, "high": -1.0}, "low")])
def test_wrong_arguments_are_named(network: FC, arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MCMCEntropy(network, SGLD(), **arguments)
    with pytest.raises(ValueError, match="network.num_classes is 1"):
        MCMCEntropy(FC([3], 1, hidden_dims=[4]), SGLD())
