"""Data sets by name: which ones a configuration names, and the node that builds each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from uncertainty_est.config import OWN_PACKAGE
from uncertainty_est.errors import ConfigError, did_you_mean
from uncertainty_est.own_data import find_own, kind_of

UNSCALED_SUFFIX = "_unscaled"
EMBEDDED_SUFFIX = "_embedded"
_CORRUPTED = re.compile(r"(?P<words>\w+)_(?P<severity>[1-5])")
# Keys of `fixed` whose values are names of data sets.
_DATASET_KEYS = ("dataset", "ood_dataset", "val_ood_datasets", "test_ood_datasets")
# What an unknown name that is near no known one may have been meant to be.
_ANY_OWN = "any folder of images <name>, or <name>.npz, .csv or .parquet, in fixed.data_root is a data set too"


def dataset_names(fixed: Mapping[str, Any]) -> list[str]:
    """Every data set that `fixed` names, once each, the in-distribution set first."""
    names: list[str] = []
    for key in _DATASET_KEYS:
        names.extend(as_names(fixed.get(key)))
    return list(dict.fromkeys(names))


def as_names(value: Any) -> list[str]:
    """A data-set entry of a configuration (nothing, one name, or a list of names) as a list of names."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [str(name) for name in value]


def grid_dataset_names(grid: Mapping[str, Any] | None) -> list[str]:
    """Names of data sets among a grid's ``choice`` options, so that a swept data set is inlined as well."""
    names: list[str] = []
    for key in _DATASET_KEYS:
        block = (grid or {}).get(key) or {}
        for option in block.get("options", []):
            names.extend(as_names(option))
    return names


def find_source(
    name: str, source_dir: Path, data_root: Path, own: str | None = None, outliers: str | None = None
) -> dict[str, Any]:
    """The node that builds data set `name`: its YAML, what lies in `data_root`, or a form of another set.

    In `data_root` a folder of images ``<name>`` is a data set, and so is ``<name>.npz``, ``.csv`` or ``.parquet``. What
    comes there in one part is for validation and testing only, unless it is `own` or `outliers`, which are trained on.

    ``<name>_unscaled`` is made of ``<name>``, and so is ``<name>_<corruption>_<1 to 5>``, unless ``<name>`` holds
    published corruptions: then it is the one asked for. What is made of `own`, the in-distribution set, is made of it
    as ``fixed.sources`` describes it, so that its splits are the same. ``<name>_embedded`` is a ``.npz`` file that may
    be written later; until it is there, ``<name>`` must be known.

    Raises:
        ConfigError: no such data set, with the nearest known name, or several in `data_root`.
    """
    path = source_dir / f"{name}.yaml"
    if path.is_file():
        return yaml.safe_load(path.read_text())
    mine = find_own(data_root, name)
    is_pack = mine is not None and mine.suffix == ".npz"
    if mine is not None and not is_pack:
        trained_on = name in (own, outliers)
        return _own_source(mine, source_dir) | ({} if trained_on else {"val_fraction": 0.1, "test_fraction": 0.9})
    if not is_pack and name.endswith(EMBEDDED_SUFFIX):
        find_source(name.removesuffix(EMBEDDED_SUFFIX), source_dir, data_root)
        is_pack = True
    if is_pack:
        return {
            "_target_": f"{OWN_PACKAGE}.data.sources.pack.NpzPack",
            "root": "${fixed.data_root}",
            "name": name,
            "shape": "${fixed.data_shape}",
            "split_seed": "${fixed.split_seed}",
        }
    if name.endswith(UNSCALED_SUFFIX):
        base = name.removesuffix(UNSCALED_SUFFIX)
        scaled = find_source(base, source_dir, data_root, own, outliers)
        return {"_target_": f"{OWN_PACKAGE}.data.sources.noise.Unscaled", "source": _node_in(own, base) or scaled}
    if (corrupted := _corrupted_source(name, source_dir, data_root, own, outliers)) is not None:
        return corrupted
    known = sorted(p.stem for p in source_dir.glob("*.yaml"))
    raise ConfigError(
        f"there is no data set '{name}': neither {path} nor {data_root / (name + '.npz')} exists"
        f"{did_you_mean(name, known) or f' ({_ANY_OWN})'}"
    )


def _corrupted_source(
    name: str, source_dir: Path, data_root: Path, own: str | None, outliers: str | None
) -> dict[str, Any] | None:
    """The node of ``<base>_<corruption>_<severity>``, for the longest `base` that is a data set (digits_holdout)."""
    match = _CORRUPTED.fullmatch(name)
    words = match["words"].split("_") if match else []
    cuts = (("_".join(words[:n]), "_".join(words[n:])) for n in range(len(words) - 1, 0, -1))
    base, corruption = next((cut for cut in cuts if _is_known(cut[0], source_dir, data_root)), (None, None))
    if match is None or base is None:
        return None
    node = find_source(base, source_dir, data_root, own, outliers)
    which = {"corruption": corruption, "severity": int(match["severity"])}
    if which.keys() <= node.keys():  # it holds published ones
        return node | which
    target = f"{OWN_PACKAGE}.data.sources.corrupted.Corrupted"
    return {"_target_": target, "source": _node_in(own, base) or node, **which}


def _node_in(own: str | None, name: str) -> str | None:
    """Where ``fixed`` describes a set, if that is the in-distribution one."""
    return f"${{fixed.sources.{name}}}" if name == own else None


def _is_known(name: str, source_dir: Path, data_root: Path) -> bool:
    if (source_dir / f"{name}.yaml").is_file() or find_own(data_root, name) is not None:
        return True
    suffix = next((suffix for suffix in (UNSCALED_SUFFIX, EMBEDDED_SUFFIX) if name.endswith(suffix)), None)
    return suffix is not None and _is_known(name.removesuffix(suffix), source_dir, data_root)


def _own_source(path: Path, source_dir: Path) -> dict[str, Any]:
    """The node of a folder or table in `data_root`: that of ``fixed.path`` with this path in its place."""
    text = (source_dir / f"{kind_of(path)}.yaml").read_text()
    node = yaml.safe_load(text.replace("${fixed.path}", f"${{fixed.data_root}}/{path.name}"))
    return node | ({"name": path.name} if "name" in node else {})


def inline_sources(fixed: Any, source_dir: Path, extra_names: Sequence[str] = (), own: str | None = None) -> None:
    """Copy the node of every named data set into ``fixed.sources``, in place and before interpolations resolve.

    A job on a cluster sees a snapshot of ``.py`` files and no YAML, so `fixed` must carry all that it needs.
    What the user set below ``fixed.sources.<name>`` wins over the file.

    Args:
        own: name of the in-distribution set; ``None`` for ``fixed.dataset``.

    Raises:
        ConfigError: an unknown name, or one's own data without ``fixed.path``.
    """
    root = Path(str(fixed.data_root))
    for name in dict.fromkeys([*dataset_names(fixed), *extra_names]):
        found = find_source(name, source_dir, root, own or fixed.get("dataset"), fixed.get("ood_dataset"))
        if "${fixed.path}" in str(found):
            _check_path(name, fixed.get("path"), source_dir)
        node = OmegaConf.create(found)
        given = OmegaConf.select(fixed, f"sources.{name}")
        OmegaConf.update(fixed, f"sources.{name}", OmegaConf.merge(node, given or {}), force_add=True)


def _check_path(name: str, path: str | None, source_dir: Path) -> None:
    """``fixed.path`` is given, and the data set `name` reads what lies there, if it is there already."""
    if path is None:
        raise ConfigError(
            f"fixed.path: the data set '{name}' is your own; say where it is, fixed.path=<file or folder>"
        )
    if (source_dir / f"{name}.yaml").is_file() and Path(path).exists() and (kind := kind_of(Path(path))) != name:
        raise ConfigError(f"fixed.path: '{path}' is read by the data set '{kind}', not by '{name}'; set dataset={kind}")
