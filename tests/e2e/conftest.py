"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
import socket

import pytest

#: What takes a machine with a GPU, or half an hour, is not even skipped elsewhere.
collect_ignore = [
    name
    for name, variable in {"test_gpu.py": "RBEE_TEST_GPU", "test_vulkan.py": "TEST_VULKAN"}.items()
    if not os.environ.get(variable)
]


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
