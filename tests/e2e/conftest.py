"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
import socket

import pytest

#: Where there is no such machine, its tests are not even skipped.
collect_ignore = [] if os.environ.get("RBEE_TEST_GPU") else ["test_gpu.py"]


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
