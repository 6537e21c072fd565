"""HDGE: both contrastive terms against a direct computation, and the queue of past logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.models.base import scoring_mode
from uncertainty_est.models.ebm.hdge import HDGE, LogitQueue
from uncertainty_est.networks.fc import FC

Batch = tuple[Tensor, Tensor]


def direct(logits: Tensor, past: Tensor, dist: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the positive among all, sample by sample as the formula is written."""
    losses = []
    for f, d in zip(logits, dist, strict=True):
        g = [(d * f / f.norm()).exp().sum().log()] + [(d * n).exp().sum().log() for n in past]
        losses.append(nn.functional.cross_entropy(torch.stack(g)[None] / temperature, torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.fixture
def past() -> Tensor:
    vectors = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    return nn.functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize("places", [11, 20], ids=["full", "half empty"])
def test_both_terms_are_the_direct_computation(network: FC, batch: Batch, past: Tensor, places: int) -> None:
    x, y = batch
    method = HDGE(network, px_weight=0.3, pxy_weight=2.0, queue_size=places, temperature=0.2, clf_weight=5.0)
    method.queue.push(past)
    parts = method.loss({"id": batch})
    logits = network(x)
    torch.testing.assert_close(parts["px"], 0.3 * direct(logits, past, torch.ones(40, 4), 0.2))
    torch.testing.assert_close(parts["pxy"], 2.0 * direct(logits, past, nn.functional.one_hot(y, 4), 0.2))
    torch.testing.assert_close(parts["ce"], 5.0 * nn.functional.cross_entropy(logits, y))


@pytest.mark.parametrize(("weights", "names"), [((0.0, 1.0), ["pxy", "ce"]), ((1.0, 0.0), ["px", "ce"])])
def test_a_weight_of_zero_leaves_a_term_out(network: FC, batch: Batch, weights: Batch, names: list[str]) -> None:
    method = HDGE(network, px_weight=weights[0], pxy_weight=weights[1], queue_size=8)
    assert list(method.loss({"id": batch})) == names


def test_an_empty_queue_costs_nothing_and_has_no_gradient(network: FC, batch: Batch) -> None:
    parts = HDGE(network, px_weight=1.0, queue_size=8, clf_weight=0.0).loss({"id": batch})
    sum(parts.values()).backward()  # type: ignore[union-attr]
    assert parts["px"] == parts["pxy"] == 0
    assert all(not parameter.grad.any() for parameter in network.parameters())


def test_the_label_s_logit_rises_against_the_past(network: FC, batch: Batch, past: Tensor) -> None:
    method = HDGE(network, queue_size=16, clf_weight=0.0)
    method.queue.push(past)
    x, y = batch
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def share() -> float:
        p = nn.functional.normalize(network(x), dim=-1)
        return p.gather(1, y.unsqueeze(1)).mean().item()

    before = share()
    for _ in range(20):
        optimizer.zero_grad()
        method.density_loss(x, y)[0]["pxy"].backward()
        optimizer.step()
    assert share() > before + 0.1


def test_one_push_a_step_of_normalised_logits_and_none_in_validation(network: FC, batch: Batch) -> None:
    method = HDGE(network, px_weight=1.0, pxy_weight=1.0, queue_size=100)
    with scoring_mode(method):
        method.validate_batch({"id": batch})
        method.predict(batch[0])
    assert method.queue.pushed == 0
    method.loss({"id": batch})
    assert method.queue.pushed == 40
    torch.testing.assert_close(method.queue.logits[:, :40].T, nn.functional.normalize(network(batch[0]), dim=-1))
    assert not method.queue.logits.requires_grad


def test_first_in_first_out_with_batches_of_any_size() -> None:
    queue = LogitQueue(2, 5)
    stream = torch.arange(46.0).view(23, 2)
    pushed = 0
    for size in (2, 2, 3, 1, 7, 8):
        queue.push(stream[pushed : pushed + size])
        pushed += size
        held = queue.logits[:, queue.filled()].T
        expected = stream[max(0, pushed - 5) : pushed]
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, expected.tolist()))


def test_the_queue_is_saved(network: FC, batch: Batch) -> None:
    method = HDGE(network, queue_size=8)
    method.loss({"id": batch})
    again = HDGE(network, queue_size=8)
    again.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(again.queue.logits, method.queue.logits)
    assert again.queue.pushed == 40


def test_the_score_is_the_density_of_the_logits_as_they_are(network: FC, batch: Batch) -> None:
    scores = HDGE(network, queue_size=8).get_ood_scores(batch[0])
    assert list(scores)[0] == "p(x)"
    torch.testing.assert_close(scores["p(x)"], network(batch[0]).logsumexp(-1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"px_weight": -1.0}, "px_weight and pxy_weight must be at least 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"queue_size": 0}, "queue_size must be at least 1"),
    ],
)
def test_senseless_arguments(network: FC, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HDGE(network, **arguments)


def test_a_single_logit_has_no_direction() -> None:
    with pytest.raises(ValueError, match="at least 2 logits"):
        HDGE(FC(data_shape=[3], num_classes=1, hidden_dims=[4]))
