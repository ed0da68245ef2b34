"""An index of tiny packages, and an empty cache for what comes from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.setup.wheels.cache import WheelCache
from tests.unit.setup.package_index import PackageIndex


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageIndex:
    return PackageIndex(tmp_path, monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> WheelCache:
    return WheelCache(tmp_path / "cache", tmp_path / "log")
