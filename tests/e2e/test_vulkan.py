"""llama.cpp compiled for Vulkan, and `rbee infer` over it. By hand, because it compiles for a quarter of an hour:

    apt install mesa-vulkan-drivers glslc libvulkan-dev spirv-headers
    TEST_VULKAN=1 .venv/bin/pytest -s tests/e2e/test_vulkan.py

Mesa's lavapipe is the GPU where there is no other: a driver for Vulkan that computes on the processor. llama.cpp takes
one only by its number. With a wheel cache's folder in TEST_VULKAN in place of 1, what was compiled there is used again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.testbed.cli import Rbee

CHOSEN = os.environ["TEST_VULKAN"]
pytestmark = pytest.mark.model

#: Seconds for a build on two cores that others use too.
BUILD_S = 3000.0
#: Sums differ in their last digits between the two, so what follows has to be beyond doubt.
QUESTION = "1, 2, 3, 4, 5, 6, 7, 8,"


@pytest.mark.timeout(2 * BUILD_S)
def test_vulkan_answers_as_the_processor_does(ready_rbee: Rbee, tmp_path: Path) -> None:
    greedy = ("--temperature", "0", "--max-tokens", "16", "--raw", QUESTION)
    by_cpu = ready_rbee("infer", *greedy).stdout
    ready_rbee("hive", "stop", "local")
    ready_rbee.inventory.write_text(
        '[nodes.local]\nbackend = "vulkan"\nenv = { GGML_VK_VISIBLE_DEVICES = "0" }\n', encoding="utf-8"
    )
    cache = {"RBEE_WHEEL_CACHE": CHOSEN} if CHOSEN != "1" else {"RBEE_WHEEL_CACHE": str(tmp_path / "wheels")}
    built = ready_rbee("infer", *greedy, env=cache, timeout=BUILD_S)
    assert built.stdout == by_cpu
    (worker,) = ready_rbee("workers", "list", "--json", env=cache).json()
    assert worker["backend"] == "vulkan"
    assert worker["options"]["devices"] == ["Vulkan0"]
