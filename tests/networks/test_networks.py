"""What holds for every network: each file in configs/network is found and tested by itself."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from uncertainty_est.errors import ConfigError
from uncertainty_est.networks import lipschitz
from uncertainty_est.networks.base import Network
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.lipschitz import SpectralLayers, SpectralNorm

CONFIGS = Path(__file__).parents[2] / "configs" / "network"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
COMMON = {"data_shape", "num_classes", "layers", "mod", "dropout"}
CLASSES = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "spectral": {"layers": SpectralLayers(coeff=1.0)},
    "spectral mod": {"layers": SpectralLayers(coeff=1.0), "mod": True, "dropout": 0.3},
}
each_network = pytest.mark.parametrize("name", NAMES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def node(name: str, data_shape: list[int], num_classes: int = CLASSES) -> dict[str, Any]:
    """The file `name` with its interpolations resolved."""
    fixed = {"data_shape": data_shape, "num_classes": num_classes}
    config = OmegaConf.create({"fixed": fixed, "network": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    return OmegaConf.to_container(config, resolve=True)["network"]  # type: ignore[index,call-overload,return-value]


def target(name: str) -> type[Network]:
    module, _, cls = node(name, [1])["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), cls)


def build(name: str, data_shape: list[int], **changes: Any) -> Network:
    arguments = node(name, data_shape) | changes
    del arguments["_target_"]
    if "widen_factor" in arguments:
        arguments["widen_factor"] = 1  # same layers, a fraction of the time
    torch.manual_seed(0)
    return target(name)(**arguments)


def build_small(name: str, variant: str) -> tuple[Network, Tensor]:
    """A copy of the network for the smallest image that it takes, and a batch."""
    return copy.deepcopy(_build_small(name, variant))


@functools.cache
def _build_small(name: str, variant: str) -> tuple[Network, Tensor]:
    for size in (8, 12, 17, 28, 32):
        try:
            network = build(name, [2, size, size], **VARIANTS[variant])
        except ConfigError:
            continue
        x = torch.randn(4, 2, size, size)
        settle(network, x)
        return network, x
    raise AssertionError(f"{name} takes no image of up to 32x32")


def settle(network: Network, x: Tensor) -> None:
    """Give batch normalisation the statistics of `x`: from its first ones, deep networks' signals vanish."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


IMAGE_NAMES = [name for name in NAMES if target(name) is not FC]


@pytest.fixture(autouse=True)
def rough_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves most of the time of building; norms have tests of their own."""
    monkeypatch.setattr(lipschitz, "INITIAL_ITERATIONS", 2)


def test_there_are_networks_to_test() -> None:
    assert {"fc", "fc_residual", "lenet", "resnet18", "resnet50", "vgg16", "wrn", "wrn_10_1"} <= set(NAMES)
    assert len(IMAGE_NAMES) == len(NAMES) - 2


@each_network
def test_the_file_spells_out_every_argument_and_its_default(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    assert path.read_text().startswith("# @package fixed.model_config.network\n_target_: ")
    parameters = inspect.signature(target(name)).parameters
    given = {key: value for key, value in node(name, [1, 32, 32]).items() if key != "_target_"}
    assert list(given) == list(parameters)
    assert set(parameters) >= COMMON
    assert [p.default for key, p in parameters.items() if key in ("layers", "mod", "dropout")] == [
        None,
        False,
        0.0,
    ]
    assert (given["layers"], given["mod"], given["dropout"]) == (None, False, 0.0)


@each_variant
@each_network
def test_logits_are_the_head_of_the_features(name: str, variant: str) -> None:
    network, x = build_small(name, variant)
    network, x = network.double().eval(), x.double()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        features = network.features(x)
        logits = network(x)
        alone = torch.cat([network(x[:1]), network(x[1:])])
    assert features.shape == (4, network.feature_dim)
    assert logits.shape == (4, CLASSES)
    assert type(network.head) is nn.Linear
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, network.head(features))
    # Neither of batch mates nor of the passes before, and without a trace.
    torch.testing.assert_close(alone, logits)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    # Different inputs do not collapse to one feature vector.
    assert (features[0] - features[1]).abs().max() > 1e-6


@each_variant
@each_network
def test_state_goes_through_a_strict_round_trip(name: str, variant: str) -> None:
    network, x = build_small(name, variant)
    network.train()
    network(x)  # moves running statistics and singular vectors
    other = build_small(name, variant)[0]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    twin = copy.deepcopy(network)
    other.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        expected = network.eval()(x)
        assert torch.equal(other.eval()(x), expected)
        assert torch.equal(twin.eval()(x), expected)


@each_variant
@each_network
def test_gradients_reach_every_parameter(name: str, variant: str) -> None:
    network, x = build_small(name, variant)
    # In evaluation mode, since batch statistics cancel the bias of the layer before them.
    network.eval()
    (network(x) * torch.randn(4, CLASSES)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@each_network
def test_dropout_is_where_monte_carlo_dropout_finds_it(name: str) -> None:
    network, x = build_small(name, "spectral mod")
    dropouts = [module for module in network.modules() if "dropout" in type(module).__name__.lower()]
    assert dropouts
    assert all(type(module) is nn.Dropout and module.p == 0.3 for module in dropouts)
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        for module in dropouts:
            module.train()
        assert not torch.equal(network(x), network(x))


@each_network
def test_a_run_without_dropout_can_start_one_with_it(name: str) -> None:
    shape = list(build_small(name, "plain")[1].shape[1:])
    with torch.device("meta"):
        with_dropout, without = build(name, shape, dropout=0.5), build(name, shape)
    assert list(with_dropout.state_dict()) == list(without.state_dict())


@each_network
def test_mod_leaves_no_relu(name: str) -> None:
    network = build_small(name, "spectral mod")[0]
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    assert all(m.negative_slope == 0.01 for m in network.modules() if isinstance(m, nn.LeakyReLU))


@each_network
def test_spectral_layers_are_all_layers_but_the_head(name: str) -> None:
    plain, network = build_small(name, "plain")[0], build_small(name, "spectral")[0]
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [type(layer) for layer in layers if not isinstance(layer, SpectralNorm)] == [nn.Linear]
    assert len(layers) > 1
    shapes = {key: value.shape for key, value in plain.named_parameters()}
    assert {key: value.shape for key, value in network.named_parameters()} == shapes


@pytest.mark.parametrize("shape", [[18], [8, 8], [0, 32, 32]])
@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_image_networks_refuse_what_is_no_image(name: str, shape: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"^network \w+ needs images .*got data_shape .*; choose network=fc"):
        build(name, shape)


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_image_networks_refuse_small_images(name: str) -> None:
    expected = r"^network \w+ needs images of at least (\d+)x\1, got data_shape \[1, 32, 3\]; choose network=\w+$"
    with pytest.raises(ConfigError, match=expected):
        build(name, [1, 32, 3])


@pytest.mark.parametrize("mod", [False, True])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (19, 22)])
@pytest.mark.parametrize("name", ["lenet", "resnet18", "wrn_10_1", "vgg16"])
def test_usual_odd_and_oblong_images(name: str, size: tuple[int, int], mod: bool) -> None:
    network = build(name, [1, *size], mod=mod, layers=SpectralLayers()).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 1, *size)).shape == (2, CLASSES)
