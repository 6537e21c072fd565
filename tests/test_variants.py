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
