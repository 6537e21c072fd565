"""Signatures read from source text are those of the imported classes."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CONFIGS
from uncertainty_est.signatures import UndecidedError, read_signature, signature_of

TARGETS = sorted(
    {t for path in CONFIGS.rglob("*.yaml") for t in re.findall(r"_target_: ([\w.]+)", path.read_text())}
    | {"uncertainty_est.run.run"}
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_configured_class_is_read_as_it_is_when_imported(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert read_signature(target) == signature_of(getattr(importlib.import_module(module), name))


def test_reading_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from uncertainty_est.signatures import read_signature\n"
        f"for target in {TARGETS!r}: read_signature(target)\n"
        "assert not {'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "things.py").write_text(
        """
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Generic, TypeVar
import some_package.other as other
from . import other as again
from .other import Base as Renamed
T = TypeVar("T")
class Plain: pass
class Child(Renamed): pass
class Through(other.Base): pass
class Again(again.Base, Plain): pass
class Two(Renamed, other.Another): pass
class Of(Generic[T]): pass
class Made(type("X", (), {})): pass
class New:
    def __new__(cls, a): return super().__new__(cls)
Alias = Child
@dataclass
class Fields(other.Record):
    constant: ClassVar[int] = 1
    _: KW_ONLY
    b: int
    c: list = field(default_factory=list)
    d: int = field(default=0, init=False)
    a: int = 2
@dataclass
class Fixed(Fields):
    a: int = field(default=3, init=False)
def function(a, /, b, *args, c, d=1, **more): pass
"""
    )
    (folder / "other.py").write_text(
        """
from dataclasses import dataclass
class Base:
    def __init__(self, x, y=1, *, z, w=2): pass
class Another:
    def __init__(self, v): pass
@dataclass
class Record:
    a: int
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_package.things"


@pytest.mark.parametrize(
    "name", ["Plain", "Child", "Through", "Again", "Of", "Alias", "Fields", "Fixed", "function", "Renamed"]
)
def test_what_inheritance_dataclasses_and_other_names_come_to(package: str, name: str) -> None:
    assert read_signature(f"{package}.{name}") == signature_of(getattr(importlib.import_module(package), name))


def test_what_the_text_does_not_tell_is_not_guessed(package: str) -> None:
    for name in ("Two", "Made", "New", "T", "dataclass_"):
        with pytest.raises(AttributeError if name == "dataclass_" else UndecidedError):
            read_signature(f"{package}.{name}")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'some_package\.nothing'"):
        read_signature("some_package.nothing.Thing")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_package'"):
        read_signature("no_package.Thing")
    with pytest.raises(UndecidedError):
        read_signature("math.sin")  # compiled
