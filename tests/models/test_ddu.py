"""DDU: the density of features under class Gaussians with priors, fitted in one streaming pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from uncertainty_est.errors import NotFittedError
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.ddu import DDU
from uncertainty_est.networks.fc import FC

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def network() -> FC:
    torch.manual_seed(0)
    return FC(data_shape=[3], num_classes=2, hidden_dims=[5], activation="tanh")


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    y = (torch.rand(400, generator=generator) < 0.25).long()
    x[y == 1] += 1.5
    return list(zip(x.split(64), y.split(64), strict=True))


def test_density_is_that_of_the_mixture_with_class_priors(network: FC, batches: Batches) -> None:
    ddu = DDU(network)
    ddu.fit_posthoc(batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        z = network.features(x).double()
    groups = [z[y == c] for c in range(2)]
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([len(g) for g in groups]).double()),
        MultivariateNormal(torch.stack([g.mean(0) for g in groups]), torch.stack([g.T.cov() for g in groups])),
    )
    torch.testing.assert_close(
        ddu.get_ood_scores(x)["gmm_log_density"].double(), mixture.log_prob(z), atol=1e-4, rtol=1e-4
    )


def test_it_classifies_as_its_classifier_does(network: FC, batches: Batches) -> None:
    ddu = DDU(network)
    ddu.fit_posthoc(batches)
    x = batches[0][0]
    plain = CEBaseline(network).predict(x)
    prediction = ddu.predict(x)
    assert torch.equal(prediction.probs, plain.probs)
    assert list(prediction.scores)[0] == "gmm_log_density"
    for name, score in plain.scores.items():
        assert torch.equal(prediction.scores[name], score)


def test_fitting_reads_the_data_once_and_changes_no_weight(network: FC, batches: Batches) -> None:
    ddu = DDU(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reads = []

    class Loader:
        def __iter__(self):  # noqa: ANN204
            reads.append(1)
            return iter(batches)

    ddu.train()
    ddu.fit_posthoc(Loader())
    assert reads == [1]
    assert ddu.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_unfitted(network: FC, batches: Batches) -> None:
    with pytest.raises(NotFittedError):
        DDU(network).predict(batches[0][0])


def test_fitted_state_survives_saving(network: FC, batches: Batches) -> None:
    ddu = DDU(network)
    ddu.fit_posthoc(batches)
    again = DDU(FC(data_shape=[3], num_classes=2, hidden_dims=[5], activation="tanh"))
    again.load_state_dict(ddu.state_dict(), strict=True)
    x = batches[0][0]
    for name, score in ddu.get_ood_scores(x).items():
        assert torch.equal(again.get_ood_scores(x)[name], score)


def test_a_classifiers_weights_become_a_ddu(network: FC, batches: Batches) -> None:
    ddu = DDU(FC(data_shape=[3], num_classes=2, hidden_dims=[5], activation="tanh"))
    ddu.init_from([CEBaseline(network).state_dict()])
    ddu.fit_posthoc(batches)
    x = batches[0][0]
    torch.testing.assert_close(ddu.classify(x), CEBaseline(network).classify(x))
