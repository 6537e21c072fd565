"""MC dropout: averages over fixed sets of masks that have dropout's own distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.models.mc_dropout import MCDropout, fixed_masks
from uncertainty_est.networks.fc import FC


@pytest.fixture
def network() -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[3], num_classes=4, hidden_dims=[16, 16], dropout=0.4)


def test_without_dropping_all_samples_coincide(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    method = MCDropout(network, num_samples=5)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    scores = method.get_ood_scores(batch[0])
    assert torch.equal(scores["Variance"], torch.zeros(40))
    torch.testing.assert_close(scores["MI"], torch.zeros(40), atol=1e-7, rtol=0)
    network.eval()
    torch.testing.assert_close(method.classify(batch[0]), network(batch[0]).softmax(-1))


def test_probabilities_are_the_mean_of_the_samples(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    method = MCDropout(network.eval(), num_samples=7)
    torch.testing.assert_close(method.classify(batch[0]), method.sample_probs(batch[0]).mean(0))


def test_masks_are_reproducible_and_differ_between_passes(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    method = MCDropout(network.eval(), num_samples=3)
    first = method.sample_probs(batch[0])
    assert torch.equal(first, method.sample_probs(batch[0]))
    assert not torch.allclose(first[0], first[1])
    other = MCDropout(network, num_samples=3, mask_seed=1).sample_probs(batch[0])
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(
    ("layer", "x", "per_channel"),
    [(nn.Dropout(0.3), torch.ones(2, 8, 4, 4), False), (nn.Dropout2d(0.3), torch.ones(2, 8, 4, 4), True)],
)
def test_masks_have_dropouts_mean_and_variance(layer: nn.Module, x: Tensor, per_channel: bool) -> None:
    layer.eval()
    with fixed_masks(layer, torch.Generator().manual_seed(0)):
        samples = torch.stack([layer(x) for _ in range(4000)])
    assert torch.equal(samples[:, 0], samples[:, 1]), "one mask for the whole batch"
    within = samples[:, 0].flatten(2)
    assert bool((within == within[..., :1]).all()) is per_channel
    # Inverted dropout of ones: mean 1, variance p / (1 - p); the tolerance is five standard errors.
    torch.testing.assert_close(samples.mean(0), torch.ones_like(x), atol=5 * (0.3 / 0.7 / 4000) ** 0.5, rtol=0)
    torch.testing.assert_close(samples.var(0), torch.full_like(x, 0.3 / 0.7), atol=0.06, rtol=0)
    assert torch.equal(layer(x), x), "outside, the layer is what it was"


def test_the_mean_over_many_masks_is_that_of_ordinary_dropout(network: FC, batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0][:4]
    ours = MCDropout(network.eval(), num_samples=3000).sample_probs(x).mean(0)
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        theirs = torch.stack([network(x).softmax(-1) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_a_network_that_drops_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fixed\.model_config\.network\.dropout"):
        MCDropout(FC(data_shape=[3], num_classes=4, hidden_dims=[8]))
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        MCDropout(FC(data_shape=[3], num_classes=4, hidden_dims=[8], dropout=0.1), num_samples=1)
