"""From a resolved configuration to objects: check every key, and the only call of ``instantiate``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from uncertainty_est.errors import ConfigError, DataError, did_you_mean
from uncertainty_est.signatures import Signature, UndecidedError, read_signature, signature_of

OWN_PACKAGE = "uncertainty_est"
SCHEMA = f"{OWN_PACKAGE}.run.run"
"""The function whose keywords ``fixed`` is."""
# What a configuration that the user wrote may build. A file found beside a checkpoint may build our own classes only.
TRUSTED_PACKAGES = (OWN_PACKAGE, "torch.optim", "pytorch_lightning")


def as_dict(node: Any) -> dict[str, Any]:
    """`node` as a dictionary with text keys.

    Raises:
        ConfigError: it is a list or a single value.
    """
    if not isinstance(node, dict):
        raise ConfigError(f"expected a section of keys, got {node!r}")
    return {str(key): value for key, value in node.items()}


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
