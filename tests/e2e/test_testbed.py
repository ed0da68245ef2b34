"""The containers are what the other tests take them for: bare, cut off, and each a machine of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.patience import PATIENCE_S
from tests.testbed import images
from tests.testbed.node import ContainerNode

pytestmark = pytest.mark.container


def test_a_node_has_no_way_out(shared_node: ContainerNode) -> None:
    assert "default" not in shared_node.exec("ip route")
    connect = "python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 443), 5)'"
    status, output = shared_node.try_exec(connect, user="bee")
    assert status != 0
    assert "Network is unreachable" in output
    status, _ = shared_node.try_exec("getent hosts pypi.org", user="bee")
    assert status != 0


def test_a_user_of_the_node_cannot_open_a_way_out(shared_node: ContainerNode) -> None:
    status, output = shared_node.try_exec("ip route add default via 172.17.0.1", user="bee")
    assert status != 0
    assert "not permitted" in output


def test_a_node_has_no_ensurepip_no_compiler_and_no_rbee(shared_node: ContainerNode) -> None:
    assert shared_node.try_exec("python3 -c 'import ensurepip'")[0] != 0
    assert shared_node.try_exec("command -v cc gcc clang make cmake pip uv")[0] != 0
    assert shared_node.try_exec("test -e /home/bee/.rbee")[0] != 0
    assert shared_node.processes() == []


@pytest.mark.parametrize("user", ["bee", "bee-bash", "bee-dash", "bee-fish", "bee-tcsh", "bee-zsh", "bee-noisy"])
def test_every_user_is_let_in(shared_node: ContainerNode, user: str) -> None:
    assert ssh(shared_node, "id -un", user=user).splitlines()[-1] == user


def test_the_host_key_can_change(ssh_node: Callable[..., ContainerNode]) -> None:
    node = ssh_node()
    before = node.fingerprint()
    node.change_host_key()
    assert node.fingerprint() != before


def test_the_memory_limit_holds(ssh_node: Callable[..., ContainerNode]) -> None:
    node = ssh_node(memory="200m")
    limit = node.exec("cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert int(limit) == 200 * 1024 * 1024


def test_the_image_without_python_has_none(ssh_node: Callable[..., ContainerNode]) -> None:
    node = ssh_node(image=images.nopython_image())
    assert node.try_exec("command -v python3 python")[0] != 0
    assert ssh(node, "echo here").strip() == "here"


def ssh(node: ContainerNode, command: str, *, user: str = "bee") -> str:
    options = [
        "-F",
        "/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
    ]
    words = ["ssh", *options, "-i", str(node.key.private), "-p", str(node.port), f"{user}@{node.host}", command]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
