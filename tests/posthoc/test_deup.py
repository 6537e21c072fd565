"""The post-hoc predictor of losses: that of the method's algorithm 1, and better than the classifier's own word."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from tests.posthoc.conftest import Samples
from uncertainty_est.errors import DataError, NotFittedError
from uncertainty_est.models.deup import DEUP
from uncertainty_est.networks.fc import FC
from uncertainty_est.posthoc.deup import ErrorPrediction


def test_it_is_the_methods_algorithm_1(samples: Samples) -> None:
    def network() -> FC:
        return FC(data_shape=[12], num_classes=4, hidden_dims=[6], activation="tanh")

    method = DEUP(network, [12], algorithm=1, min_jitter=1e-6)
    method.fit_posthoc([(samples.features, samples.labels)])
    with torch.no_grad():
        z, new = method.network.eval().features(samples.features), method.network.features(samples.z)
    score = ErrorPrediction()
    with torch.no_grad():
        score.fit(z, method.network.head(z), samples.labels, method.network.head)
        scores = score.score(new, method.network.head(new))
    torch.testing.assert_close(scores.float(), method.get_ood_scores(samples.z)["deup"])


def test_where_a_classifier_errs_far_out_it_says_so_and_entropy_does_not() -> None:
    """Labels follow the head near the origin and contradict it far away, where it is most certain."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
        z = torch.randn(1200, 4, generator=generator) * (0.5 + 2.5 * torch.rand(1200, 1, generator=generator))
        logits = head(z)
        near = z.norm(dim=-1) < 3
        y = torch.where(near, logits.argmax(-1), logits.argmin(-1))
        score = ErrorPrediction()
        score.fit(z[:600], logits[:600], y[:600], head)
        predicted = -score.score(z[600:], logits[600:])
    loss = F.cross_entropy(logits[600:], y[600:], reduction="none")
    entropy = torch.special.entr(logits[600:].softmax(-1)).sum(-1)
    assert spearmanr(predicted, loss)[0] > 0.7 > 0.2 > spearmanr(entropy, loss)[0]


def test_errors(samples: Samples) -> None:
    with pytest.raises(NotFittedError):
        ErrorPrediction().score(samples.z, samples.z[:, :4])
    with pytest.raises(DataError, match="choose a smaller --scores deup:folds="):
        ErrorPrediction(folds=9).fit(samples.z[:4], samples.z[:4, :4], samples.labels[:4], samples.head)
    for settings in ({"folds": 1}, {"min_jitter": -1.0}):
        with pytest.raises(ValueError, match="folds must be at least 2"):
            ErrorPrediction(**settings)
