"""Deep ensemble: independent members, averaged probabilities, and assembly from finished runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.deep_ensemble import DeepEnsemble
from uncertainty_est.networks.fc import FC

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def make() -> partial[FC]:
    torch.manual_seed(0)
    return partial(FC, data_shape=[3], num_classes=4, hidden_dims=[16])


def test_members_are_initialised_independently(make: partial[FC]) -> None:
    first, second, _ = DeepEnsemble(make, 3).members
    assert not torch.equal(first.head.weight, second.head.weight)


def test_probabilities_are_averaged_not_logits(make: partial[FC], batch: Batch) -> None:
    ensemble = DeepEnsemble(make, 3)
    expected = torch.stack([member(batch[0]).softmax(-1) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble.classify(batch[0]), expected)
    in_log_space = torch.stack([m(batch[0]).log_softmax(-1) for m in ensemble.members]).logsumexp(0)
    torch.testing.assert_close(expected, (in_log_space - torch.tensor(3.0).log()).exp())


def test_identical_members_know_nothing_from_each_other(make: partial[FC], batch: Batch) -> None:
    ensemble = DeepEnsemble(make, 3)
    for member in ensemble.members[1:]:
        member.load_state_dict(ensemble.members[0].state_dict())
    scores = ensemble.get_ood_scores(batch[0])
    torch.testing.assert_close(scores["MI"], torch.zeros(40), atol=1e-7, rtol=0)
    torch.testing.assert_close(scores["Variance"], torch.zeros(40), atol=1e-12, rtol=0)


def test_order_of_members_does_not_matter(make: partial[FC], batch: Batch) -> None:
    ensemble = DeepEnsemble(make, 3)
    before = ensemble.predict(batch[0])
    ensemble.members = torch.nn.ModuleList(reversed(list(ensemble.members)))
    after = ensemble.predict(batch[0])
    for name, score in before.scores.items():
        torch.testing.assert_close(after.scores[name], score)


def test_every_member_gets_the_gradient_it_would_have_alone(make: partial[FC], batch: Batch) -> None:
    ensemble = DeepEnsemble(make, 3)
    ensemble.loss({"id": batch})["ce"].backward()
    together = [member.head.weight.grad.clone() for member in ensemble.members]
    ensemble.zero_grad()
    for member, expected in zip(ensemble.members, together, strict=True):
        CEBaseline(member).loss({"id": batch})["ce"].backward()
        torch.testing.assert_close(member.head.weight.grad, expected)


def test_assembled_from_runs(make: partial[FC], batch: Batch) -> None:
    singles = [CEBaseline(make()) for _ in range(2)]
    ensemble = DeepEnsemble(make, 2)
    ensemble.init_from([single.state_dict() for single in singles])
    expected = torch.stack([single.classify(batch[0]) for single in singles]).mean(0)
    torch.testing.assert_close(ensemble.classify(batch[0]), expected)


def test_one_member_is_no_ensemble(make: partial[FC]) -> None:
    with pytest.raises(ValueError, match="num_members must be at least 2, got 1"):
        DeepEnsemble(make, 1)
