"""No test of the data floor may reach the network; published sets are small files written by the tests."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision

from tests.data import layouts


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("the tests have no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Writes every published data set in its official layout, a few images each, and returns the root."""

    def is_there(path: str, md5: str | None = None) -> bool:
        return Path(path).is_file()

    # Our few images cannot have the official checksums; everything else of torchvision's reading stays as
    # it is.
    for module in ("cifar", "svhn", "omniglot", "utils"):
        monkeypatch.setattr(getattr(torchvision.datasets, module), "check_integrity", is_there)

    def write() -> Path:
        layouts.write_all(tmp_path)
        return tmp_path

    return write
