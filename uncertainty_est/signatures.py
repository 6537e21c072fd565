"""What classes and functions take, read from their source text.

Importing them to ask would import torch and Lightning: seconds, before a misspelt key can be told.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Definition = ast.ClassDef | ast.FunctionDef
# Bases that change no constructor.
_NEUTRAL = ("object", ("abc", "ABC"), ("typing", "Generic"), ("typing", "Protocol"))
# Keywords, and whether each must be given; whether further ones are taken.
Keywords = tuple[dict[str, bool], bool]


@dataclass(frozen=True)
class Signature:
    """The keywords of a class or function.

    Attributes:
        home: module in which it is defined.
        is_class: whether it is a class.
        parameters: name to whether it must be given, in order.
        open_ended: takes further keywords.
    """

    home: str
    is_class: bool
    parameters: dict[str, bool]
    open_ended: bool


class UndecidedError(Exception):
    """The source text does not tell; only importing would."""


def signature_of(target: Callable[..., Any]) -> Signature:
    """The signature of a class or function that is at hand."""
    given = inspect.signature(target).parameters.values()
    named = [p for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Signature(
        home=getattr(target, "__module__", None) or "",
        is_class=inspect.isclass(target),
        parameters={p.name: p.default is p.empty for p in named},
        open_ended=any(p.kind is p.VAR_KEYWORD for p in given),
    )


@cache
def read_signature(target: str) -> Signature:
    """The signature of the class or function with a dotted name, without importing the module that it is in.

    Raises:
        ModuleNotFoundError: there is no such module.
        AttributeError: the module has no such name; ``args[1]`` are the names that it has.
        UndecidedError: the source does not tell (compiled modules, star imports, names and bases made at run time).
    """
    module, _, name = target.rpartition(".")
    home, node = _find(module, name)
    if isinstance(node, ast.FunctionDef):
        return Signature(home, False, *_keywords(node))
    parameters, open_ended = _constructor(home, node) or ({}, False)
    return Signature(home, True, parameters, open_ended)


# ------------------------------------------------------------------------------------------------------------- names


def _find(module: str, name: str) -> tuple[str, Definition]:
    """The module that defines what `module` calls `name`, and the definition."""
    names, open_ended = _names(module)
    found = names.get(name)
    if isinstance(found, Definition):
        return module, found
    if isinstance(found, tuple) and found != (module, name):
        try:
            return _find(*found)
        except (ModuleNotFoundError, AttributeError) as error:
            raise UndecidedError(f"{module}.{name}") from error
    if found is not None or open_ended:
        raise UndecidedError(f"{module}.{name}")
    raise AttributeError(f"{module} has no '{name}'", sorted(names))


@cache
def _names(module: str) -> tuple[dict[str, Definition | tuple[str, str] | str], bool]:
    """What a module's names stand for, and whether it may have others.

    A definition, a module and a name in it, a module (text), or something else (empty text).
    """
    names: dict[str, Definition | tuple[str, str] | str] = {}
    open_ended = False
    for node in _statements(ast.parse(_file(module).read_bytes()).body):
        if isinstance(node, Definition):
            names[node.name] = node
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            names |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
            open_ended |= any(alias.name == "*" for alias in node.names)
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else "" for a in node.names}
        elif isinstance(node, ast.Assign):
            other = names.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            names |= {target.id: other for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = ""
    return names, open_ended


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under conditions included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        else:
            yield node


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a ``from`` statement in `module` imports from."""
    if not node.level:
        return node.module or ""
    is_package = _file(module).name == "__init__.py"
    package = module.split(".")[: None if is_package else -1]
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


@cache
def _file(module: str) -> Path:
    """The source of a module; only packages' search paths are asked for, since looking inside would import them."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{top}'", name=top)
    if spec.submodule_search_locations is None:
        if rest:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        if not (spec.origin or "").endswith(".py"):
            raise UndecidedError(module)
        return Path(spec.origin or "")
    for folder in spec.submodule_search_locations:
        base = Path(folder, *rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return path
        if any(base.parent.glob(f"{base.name}.*")) or base.is_dir():
            raise UndecidedError(module)  # compiled, or a package without a file of its own
    raise ModuleNotFoundError(f"No module named '{module}'", name=module)


# -------------------------------------------------------------------------------------------------------- signatures


def _constructor(home: str, node: ast.ClassDef) -> Keywords | None:
    """Keywords of a class; ``None`` where neither it nor what it inherits from has a constructor."""
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    if "__new__" in methods or any(_called(k.value) != "ABCMeta" for k in node.keywords if k.arg == "metaclass"):
        raise UndecidedError(f"{home}.{node.name}")
    if "__init__" in methods:
        return _keywords(methods["__init__"], is_method=True)
    if _is_dataclass(home, node):
        fields = _fields(home, node)
        return {name: needed for name, needed in fields.items() if needed is not None}, False
    inherited = [found for base in _bases(home, node) if (found := _constructor(*base)) is not None]
    if len(inherited) > 1:  # which one comes first depends on what the bases have in common
        raise UndecidedError(f"{home}.{node.name}")
    return inherited[0] if inherited else None


def _fields(home: str, node: ast.ClassDef) -> dict[str, bool | None]:
    """Fields of a dataclass, inherited ones first: whether each must be given, ``None`` if it cannot."""
    fields: dict[str, bool | None] = {}
    for base in reversed(_bases(home, node)):
        fields |= _fields(*base)
    if not _is_dataclass(home, node):
        return fields
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            kind = item.annotation.value if isinstance(item.annotation, ast.Subscript) else item.annotation
            if _called(kind) not in ("ClassVar", "KW_ONLY"):
                fields[item.target.id] = _is_needed(item.value)
    return fields


def _is_needed(value: ast.expr | None) -> bool | None:
    """Whether a field with this right-hand side must be given; ``None``: the constructor does not take it."""
    if not (isinstance(value, ast.Call) and _called(value) == "field"):
        return value is None
    options = {keyword.arg: keyword.value for keyword in value.keywords}
    init = options.get("init")
    if isinstance(init, ast.Constant) and init.value is False:
        return None
    return not {"default", "default_factory"} & options.keys()


def _is_dataclass(home: str, node: ast.ClassDef) -> bool:
    """Whether a class is decorated as one."""
    names = [_called(decorator) for decorator in node.decorator_list]
    options = [k.arg for d in node.decorator_list if isinstance(d, ast.Call) for k in d.keywords]
    if set(names) - {"dataclass"} or "init" in options:
        raise UndecidedError(f"{home}.{node.name}")
    return bool(names)


def _bases(home: str, node: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
    """The classes that a class names as its bases, with the modules that define them; builtin ones left out."""
    bases = []
    names, open_ended = _names(home)
    for base in node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(expression, ast.Name) and names.get(expression.id, expression.id) in _NEUTRAL:
            continue
        if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
            holder = names.get(expression.value.id)
            module = ".".join(holder) if isinstance(holder, tuple) else holder
            if not isinstance(module, str) or not module:
                raise UndecidedError(f"{home}.{node.name}")
            found = _find(module, expression.attr)
        elif isinstance(expression, ast.Name) and (expression.id in names or open_ended):
            found = _find(home, expression.id)
        else:
            raise UndecidedError(f"{home}.{node.name}")
        if not isinstance(found[1], ast.ClassDef):
            raise UndecidedError(f"{home}.{node.name}")
        bases.append((found[0], found[1]))
    return bases


def _keywords(function: ast.FunctionDef, is_method: bool = False) -> Keywords:
    """What a function takes by name; a decorator is taken to leave that as it is."""
    given = function.args
    by_position = [*given.posonlyargs, *given.args]
    without_default = len(by_position) - len(given.defaults)
    parameters = {arg.arg: number < without_default for number, arg in enumerate(by_position)}
    for arg in by_position[: max(len(given.posonlyargs), int(is_method))]:
        del parameters[arg.arg]
    parameters |= {a.arg: d is None for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    return parameters, given.kwarg is not None


def _called(node: ast.expr) -> str:
    """The last name of what an expression names or calls, or an empty text."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
