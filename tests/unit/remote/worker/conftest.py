"""What tests of a whole worker share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)
