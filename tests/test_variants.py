"""Published settings by name, where the defaults are others."""

from __future__ import annotations

import pytest

from tests.conftest import CONFIGS, compose_points
from uncertainty_est.config import validate
from uncertainty_est.run import run

VARIANTS = sorted(path.stem for path in (CONFIGS / "variant").glob("*.yaml"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_the_method_that_it_is_named_after(variant: str) -> None:
    """Of all the keys that it sets none is unknown, and one at least is not as it was."""
    model = f"fc_{variant.removesuffix('_published')}"
    plain, changed = (
        compose_points("dataset=segment", f"model={model}", *more)[0] for more in ([], [f"variant={variant}"])
    )
    validate(changed, run)
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
