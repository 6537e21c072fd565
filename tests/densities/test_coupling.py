"""Coupling flows: samples as differentiable functions of noise."""

from __future__ import annotations

import pytest
import torch

from uncertainty_est.densities.coupling import CouplingFlows


@pytest.fixture(params=[1, 3])
def flows(request: pytest.FixtureRequest) -> CouplingFlows:
    torch.manual_seed(0)
    return CouplingFlows(request.param, 2, num_layers=3, hidden_dims=[8]).double()


def test_noise_is_what_samples_are_mapped_to(flows: CouplingFlows) -> None:
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = flows.from_noise(noise)
    for c, flow in enumerate(flows.flows):
        rows = slice(c, None, flows.num_classes)
        torch.testing.assert_close(flow().transform(samples[rows]), noise[rows])


def test_sampling_is_from_noise_of_the_generator(flows: CouplingFlows) -> None:
    flows = flows.float()
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(flows.sample(20, torch.Generator().manual_seed(5)), flows.from_noise(noise))


def test_samples_are_differentiable_in_the_parameters(flows: CouplingFlows) -> None:
    """The derivative of a mean over samples along a random direction, against finite differences."""
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def mean() -> torch.Tensor:
        return flows.from_noise(noise).pow(3).mean()

    parameters = list(flows.parameters())
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    gradient = torch.autograd.grad(mean(), parameters)
    exact = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))

    def shifted(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            value = mean()
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return value

    torch.testing.assert_close((shifted(1e-6) - shifted(-1e-6)) / 2e-6, exact, rtol=1e-5, atol=1e-8)
