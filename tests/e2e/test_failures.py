"""What goes wrong, and what the user sees: the exit status, one line, what matters, and what to do.

The ten cases that the specification numbers are in test_edge_cases.py, failures of machines in test_hard_failures.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until

LONG = "Write a very long story about a bee who travels around the world."


@pytest.mark.container
@pytest.mark.model
class TestOnAWarmNode:
    def test_an_unknown_model(self, shared_rbee: Rbee, warm_node: ContainerNode) -> None:
        assert failure(shared_rbee, 6, "--node", "gpu1", "--model", "smollm9:1b")["code"] == "MODEL_NOT_FOUND"

    def test_a_model_file_that_is_none(self, shared_rbee: Rbee, warm_node: ContainerNode) -> None:
        warm_node.exec("echo nonsense > /home/bee/bad.gguf && chmod 644 /home/bee/bad.gguf")
        error = failure(shared_rbee, 6, "--node", "gpu1", "--model", "file:/home/bee/bad.gguf")
        assert error["code"] == "MODEL_INVALID"

    def test_a_prompt_longer_than_the_context(self, shared_rbee: Rbee, warm_node: ContainerNode) -> None:
        error = failure(shared_rbee, 2, "--node", "gpu1", prompt="bee " * 6000)
        assert "context" in error["message"]

    def test_a_deadline(self, shared_rbee: Rbee, warm_node: ContainerNode) -> None:
        shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
        for seconds in (4, 16, 64):  # a machine at work may have no token after the first
            words = ("--no-stream", "--node", "gpu1", "--max-tokens", "3000", "--timeout", f"{seconds}s")
            error = failure(shared_rbee, 124, *words, prompt=LONG)
            assert error["code"] == "DEADLINE_EXCEEDED"
            if "saved" in error["details"]:
                break
        assert re.fullmatch(r"\d+ of \d+ tokens", error["details"]["generated"])
        assert Path(error["details"]["saved"]).read_text().strip()


@pytest.mark.container
@pytest.mark.model
def test_ctrl_c_during_the_bootstrap_leaves_nothing_half_done(
    rbee: Rbee, ssh_node: Callable[..., ContainerNode]
) -> None:
    node = ssh_node()
    rbee.inventory.write_text(node.inventory())
    with rbee.start("infer", "--node", "gpu1", "--max-tokens", "4", "Hello") as running:
        running.wait_for("uploading wheels")
        running.interrupt()
        assert running.finish().status == 130
    wait_until(lambda: not node.processes(), 60, lambda: f"left: {node.processes()}")
    assert node.try_exec("ls -d /home/bee/.rbee/node/runtimes/*/bin/python")[0] != 0
    assert rbee("infer", "--node", "gpu1", "--max-tokens", "4", "Hello").stdout.strip()
    rbee("hive", "stop", "gpu1")
    node.assert_quiet()


@pytest.mark.container
def test_a_changed_host_key_is_refused_with_both_fingerprints(
    rbee: Rbee, ssh_node: Callable[..., ContainerNode]
) -> None:
    node = ssh_node()
    rbee.inventory.write_text(node.inventory())
    pinned = node.fingerprint()
    node.change_host_key()
    result = rbee("infer", "--node", "gpu1", "Hello", status=4)
    assert pinned in result.stderr
    assert node.fingerprint() in result.stderr


@pytest.mark.container
def test_an_unknown_host_key_is_refused_with_the_command_that_pins_it(rbee: Rbee, shared_node: ContainerNode) -> None:
    without = "\n".join(line for line in shared_node.inventory().splitlines() if not line.startswith("host_key"))
    rbee.inventory.write_text(without + "\n")
    error = failure(rbee, 4, "--node", "gpu1")
    assert error["code"] == "HOST_KEY_UNKNOWN"
    assert "rbee nodes" in error["hint"]
    assert shared_node.fingerprint() in str(error)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[nodes.gpu1\n", "inventory.toml"),
        ('[nodes.gpu1]\nhost = "192.0.2.1"\nport = "22"\n', "port"),
        ('[nodes.gpu1]\nhost = "192.0.2.1"\ncolour = "red"\n', "colour"),
    ],
)
def test_a_bad_inventory(rbee: Rbee, text: str, named: str) -> None:
    rbee.inventory.write_text(text)
    error = failure(rbee, 2, "--node", "gpu1")
    assert error["code"] == "CONFIG_INVALID"
    assert named in str(error)
    assert "inventory.toml" in str(error)


def test_a_node_that_is_not_in_the_inventory(rbee: Rbee) -> None:
    rbee.inventory.write_text('[nodes.gpu1]\nhost = "192.0.2.1"\n')
    error = failure(rbee, 2, "--node", "gpu2")
    assert "gpu1" in error["hint"]


def test_an_error_is_a_line_and_a_hint_and_no_traceback(rbee: Rbee) -> None:
    result = rbee("infer", "--node", "nowhere", "Hello", status=2)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert result.stdout == ""


def failure(rbee: Rbee, status: int, *options: str, prompt: str = "Hello") -> Any:
    """The error object of an `infer --json` that ends with `status`."""
    return rbee("infer", "--json", *options, prompt, status=status).lines()[-1]["error"]
