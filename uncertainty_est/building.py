"""A resolved `fixed` to the data module and the method that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uncertainty_est import checkpoints
from uncertainty_est.config import build
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data_names import as_names
from uncertainty_est.errors import ConfigError
from uncertainty_est.models.base import Method
from uncertainty_est.run_folder import run_folder


def build_data(fixed: Mapping[str, Any], own_only: bool = False) -> OODDataModule:
    """The data module of a resolved `fixed`; nothing is read yet.

    Raises:
        ConfigError: a named data set has no node in ``fixed.sources``.
    """
    nodes = fixed.get("sources") or {}

    def source(name: str) -> Any:
        if name not in nodes:
            raise ConfigError(f"fixed.sources.{name}: the data set '{name}' is named but not described")
        return build(nodes[name], own_only=own_only)

    ood_dataset = fixed.get("ood_dataset")
    return OODDataModule(
        id_source=source(fixed["dataset"]),
        transform=build(fixed["transform"], own_only=own_only),
        data_shape=tuple(fixed["data_shape"]),
        num_classes=fixed["num_classes"],
        batch_size=fixed["batch_size"],
        eval_batch_size=fixed["eval_batch_size"],
        ood_source=source(ood_dataset) if ood_dataset else None,
        val_ood_sources={name: source(name) for name in as_names(fixed.get("val_ood_datasets"))},
        test_ood_sources={name: source(name) for name in as_names(fixed.get("test_ood_datasets"))},
        seed=fixed["seed"],
    )


def build_method(fixed: Mapping[str, Any]) -> Method:
    """The method of a resolved `fixed`, with the weights of ``init_from`` if given.

    Raises:
        ConfigError: it needs outliers that are not given, or the given runs do not fit.
    """
    method = build(fixed["model_config"])
    if not isinstance(method, Method):
        raise ConfigError(f"model_config._target_: {fixed['model_config']['_target_']} is no method")
    if method.needs_ood and not fixed.get("ood_dataset"):
        raise ConfigError(
            f"fixed.ood_dataset: {type(method).__name__} trains on outliers; name a data set,"
            f" for example fixed.ood_dataset=uniform_noise"
        )
    if method.needs_val_ood and not as_names(fixed.get("val_ood_datasets")):
        raise ConfigError(
            f"fixed.val_ood_datasets: {type(method).__name__} chooses settings by how well they tell data from"
            f" outliers; name sets that are not tested on, for example [uniform_noise], or give single values in"
            f" fixed.model_config"
        )
    finished_later = method.posthoc_split is not None or method.needs_val_ood
    if finished_later and (fixed.get("checkpoint_config") or {}).get("monitor") == "val/ood":
        raise ConfigError(
            f"fixed.checkpoint_config.monitor: {type(method).__name__} is fitted after training, so there is no"
            f" val/ood to select by while it trains; choose val/acc or val/loss"
        )
    init_from = as_names(fixed.get("init_from"))
    if init_from:
        folders = [run_folder(Path(path)) for path in init_from]
        method.init_from([checkpoints.read_weights(folder) for folder in folders])
    return method
