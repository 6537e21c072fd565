"""From a composed configuration to objects: name data sets, check every key, and the only call of ``instantiate``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import yaml
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from uncertainty_est.errors import ConfigError, DataError, did_you_mean
from uncertainty_est.own_data import find_own, kind_of
from uncertainty_est.signatures import Signature, UndecidedError, read_signature, signature_of

OWN_PACKAGE = "uncertainty_est"
SCHEMA = f"{OWN_PACKAGE}.run.run"
"""The function whose keywords ``fixed`` is."""
# What a configuration that the user wrote may build. A file found beside a checkpoint may build our own classes only.
TRUSTED_PACKAGES = (OWN_PACKAGE, "torch.optim", "pytorch_lightning")

UNSCALED_SUFFIX = "_unscaled"
EMBEDDED_SUFFIX = "_embedded"
_CORRUPTED = re.compile(r"(?P<words>\w+)_(?P<severity>[1-5])")
# Keys of `fixed` whose values are names of data sets.
_DATASET_KEYS = ("dataset", "ood_dataset", "val_ood_datasets", "test_ood_datasets")
# What an unknown name that is near no known one may have been meant to be.
_ANY_OWN = "any folder of images <name>, or <name>.npz, .csv or .parquet, in fixed.data_root is a data set too"


# ---------------------------------------------------------------------------------------------- data sets by name


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


def as_dict(node: Any) -> dict[str, Any]:
    """`node` as a dictionary with text keys.

    Raises:
        ConfigError: it is a list or a single value.
    """
    if not isinstance(node, dict):
        raise ConfigError(f"expected a section of keys, got {node!r}")
    return {str(key): value for key, value in node.items()}


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


# ---------------------------------------------------------------------------------------------------- validation


def validate(fixed: Mapping[str, Any], schema: Signature | str = SCHEMA, *, own_only: bool = False) -> None:
    """Compare every key of a resolved `fixed` with the signature that will receive it.

    Signatures are read from source text: nothing that `fixed` describes is imported.

    Args:
        fixed: plain, resolved mapping.
        schema: what takes the keys of `fixed`, or its dotted name.
        own_only: allow classes of this package only (for a file that came with a checkpoint).

    Raises:
        ConfigError: all problems at once, each with its dotted path and the nearest right name.
    """
    problems = list(_compare("", fixed, read_signature(schema) if isinstance(schema, str) else schema, "run"))
    for path, node in walk_targets(fixed):
        try:
            signature = describe(node["_target_"], path, own_only=own_only)
        except ConfigError as error:
            problems.append(str(error))
            continue
        keys = {k: v for k, v in node.items() if not k.startswith("_")}
        partial = bool(node.get("_partial_"))
        problems.extend(_compare(path, keys, signature, node["_target_"].rsplit(".", 1)[-1], partial=partial))
    if problems:
        raise ConfigError("; ".join(problems))


def walk_targets(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_`` at or below `node`, with its dotted path, outermost first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from walk_targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            yield from walk_targets(value, f"{path}[{i}]")


def _compare(
    path: str, keys: Mapping[str, Any], signature: Signature, label: str, *, partial: bool = False
) -> Iterator[str]:
    parameters = signature.parameters
    prefix = f"{path}." if path else "fixed."
    for key in keys:
        if key not in parameters and not signature.open_ended:
            yield f"{prefix}{key}: {label} takes no such argument{did_you_mean(key, parameters)}"
    for name, needed in parameters.items():
        if needed and not partial and name not in keys:
            yield f"{prefix}{name}: {label} needs this argument"
    for key, value in keys.items():
        if value == "???":
            yield f"{prefix}{key}: a value must be given"


def describe(target: Any, path: str = "", *, own_only: bool = False) -> Signature:
    """What the class (or function) that a ``_target_`` names takes, after checking that it may be built.

    It is imported only where its source text does not tell.

    Raises:
        ConfigError: not in an allowed package, does not exist, or reached through another module's attributes.
    """
    where = _check_name(target, path, own_only)
    module_name, _, name = target.rpartition(".")
    try:
        signature = read_signature(target)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}: there is no module '{error.name}'") from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {module_name} has no '{name}'{did_you_mean(name, error.args[1])}") from error
    except UndecidedError:
        return signature_of(locate(target, path, own_only=own_only))
    _check_home(where, target, signature.home, signature.is_class, own_only)
    return signature


def locate(target: Any, path: str = "", *, own_only: bool = False) -> Any:
    """Import the class (or function) that a ``_target_`` names, after checking that it may be built.

    Raises:
        ConfigError: not in an allowed package, does not exist, or reached through another module's attributes.
    """
    where = _check_name(target, path, own_only)
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}: there is no module '{error.name}'") from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{where}: {module_name} has no '{name}'{did_you_mean(name, vars(module))}")
    _check_home(where, target, getattr(found, "__module__", None) or "", inspect.isclass(found), own_only)
    return found


def _check_name(target: Any, path: str, own_only: bool) -> str:
    """Where a target stands, for messages, if its name is one that may be built."""
    where = f"{path}._target_" if path else "_target_"
    allowed = _allowed(own_only)
    if not isinstance(target, str) or not any(target.startswith(f"{package}.") for package in allowed):
        raise ConfigError(f"{where}: '{target}' may not be built; allowed are classes below {', '.join(allowed)}")
    return where


def _check_home(where: str, target: str, home: str, is_class: bool, own_only: bool) -> None:
    """`uncertainty_est.run.os.system` starts with an allowed name; what counts is where the object was defined."""
    allowed = _allowed(own_only)
    if not any(home == package or home.startswith(f"{package}.") for package in allowed):
        raise ConfigError(f"{where}: '{target}' is defined in '{home}'; allowed are {', '.join(allowed)}")
    if own_only and not is_class:
        raise ConfigError(f"{where}: '{target}' is not a class of {OWN_PACKAGE}")


def _allowed(own_only: bool) -> tuple[str, ...]:
    return (OWN_PACKAGE,) if own_only else TRUSTED_PACKAGES


# ------------------------------------------------------------------------------------------------------ building


def build(node: Mapping[str, Any], *, own_only: bool = False, **extra: Any) -> Any:
    """Build the object a node describes, nested nodes first.

    Args:
        node: mapping with a ``_target_``.
        own_only: see :func:`validate`.
        extra: keyword arguments that are no part of the configuration.

    Raises:
        ConfigError: a target that may not be built, or a value that its class refuses.
    """
    for path, inner in walk_targets(node):
        locate(inner["_target_"], path, own_only=own_only)
    try:
        return hydra.utils.instantiate(dict(node), **extra, _convert_="all")
    except InstantiationException as error:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # seconds, for what needs no class

        cause = error.__cause__
        if isinstance(cause, ConfigError | DataError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError | MisconfigurationException):
            raise ConfigError(f"{node['_target_']}: {cause}") from error
        raise
