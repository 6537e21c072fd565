"""Published settings by name, where the defaults are others."""

from __future__ import annotations

import pytest

from tests.conftest import CONFIGS, compose_points
from uncertainty_est.config import validate

VARIANTS = sorted(path.stem for path in (CONFIGS / "variant").glob("*.yaml"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_the_method_that_it_is_named_after(variant: str) -> None:
    """Of all the keys that it sets none is unknown, and one at least is not as it was."""
    model = f"fc_{variant.removesuffix('_published')}"
    plain, changed = (
        compose_points("dataset=segment", f"model={model}", *more)[0] for more in ([], [f"variant={variant}"])
    )
    validate(changed)
    assert plain["model_config"] != changed["model_config"]
    assert changed["model"] == model


def test_a_published_optimizer_takes_the_place_of_the_methods_own() -> None:
    overrides = ["dataset=cifar10", "model=img_leave_out_ensemble", "variant=leave_out_ensemble_published"]
    (fixed,) = compose_points(*overrides)
    config = fixed["model_config"]
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    assert config["optimizer"] == sgd and config["scheduler"]["milestones"] == [50, 75]
    assert set(config["scheduler"]) == {"_target_", "_partial_", "milestones", "gamma"}
    # What the defaults have already.
    published = {"num_folds": 5, "margin": 0.4, "margin_weight": 0.2, "temperature": 1000.0, "epsilon": 0.002}
    assert published.items() <= config.items() and fixed["earlystop_config"] is None


DDU_SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.mark.parametrize("model", ["img_ddu", "img_ce_baseline"])
@pytest.mark.parametrize("network", ["wrn", "vgg16", "resnet18", "resnet50", "lenet"])
@pytest.mark.parametrize(
    ("dataset", "classes", "epochs"), [("cifar10", 10, 350), ("cifar100", 100, 350), ("dirty_mnist", 10, 100)]
)
def test_ddu_trains_every_network_on_every_data_set_as_published(
    dataset: str, classes: int, epochs: int, network: str, model: str
) -> None:
    asked = [f"dataset={dataset}", f"network={network}", f"model={model}", "variant=ddu_published"]
    (fixed,) = compose_points(*asked)
    config = fixed["model_config"]
    assert config["optimizer"] == DDU_SGD | {"nesterov": False}
    assert config["scheduler"] == {
        "_target_": "torch.optim.lr_scheduler.MultiStepLR",
        "_partial_": True,
        "milestones": [150, 250],
        "gamma": 0.1,
    }
    assert (fixed["batch_size"], fixed["trainer_config"]["max_epochs"]) == (128, epochs)
    assert fixed["checkpoint_config"] is None and fixed["earlystop_config"] is None  # the last weights
    transform = fixed["transform"]
    augmented = (0, False) if dataset == "dirty_mnist" else (4, True)
    assert (transform["crop_padding"], transform["flip"], transform["rotation"]) == (*augmented, 0.0)
    node = config["network"]
    assert node["num_classes"] == classes and node["dropout"] == (0.3 if network == "wrn" else 0.0)
    assert node.get("bn_momentum") == (0.01 if network == "wrn" else None)
    assert node["mod"] == (model == "img_ddu")
    coeff = node["layers"] and node["layers"]["coeff"]
    assert coeff == (3.0 if model == "img_ddu" else None)


def test_ddus_ablations_by_override() -> None:
    asked = ["dataset=cifar10", "network=wrn", "model=img_ddu", "variant=ddu_published"]
    (fixed,) = compose_points(
        *asked, "fixed.model_config.network.mod=false", "fixed.model_config.network.layers.coeff=6"
    )
    assert not fixed["model_config"]["network"]["mod"] and fixed["model_config"]["network"]["layers"]["coeff"] == 6
    (fixed,) = compose_points(*asked, "fixed.model_config.network.layers=null")
    assert fixed["model_config"]["network"]["layers"] is None
