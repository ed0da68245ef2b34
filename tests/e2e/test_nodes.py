"""`rbee nodes`: adding a machine, looking it over, and an inventory that stays the user's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.testbed.cli import Rbee, Result
from tests.testbed.node import ContainerNode

pytestmark = pytest.mark.container

INVENTORY = """# My machines, in the order in which I bought them.

[defaults]
keep_alive = "2m"      # electricity is dear

[nodes.attic]          # under the roof
host = "192.0.2.7"
tags = ["old"]
"""


def test_add_pins_the_host_key_and_keeps_the_comments(rbee: Rbee, shared_node: ContainerNode) -> None:
    rbee.inventory.write_text(INVENTORY)
    result = add(rbee, shared_node, "--yes", "--tag", "cuda")
    text = rbee.inventory.read_text()
    assert text.startswith(INVENTORY.rstrip())
    assert f'host_key = "{shared_node.fingerprint()}"' in text
    assert f"--yes accepts {shared_node.fingerprint()}" in result.stderr
    assert "nobody compared it" in result.stderr

    listed = rbee("nodes", "list", "--json").json()
    assert [node["name"] for node in listed] == ["attic", "gpu1", "local"]
    shown = rbee("nodes", "show", "gpu1", "--json").json()
    assert (shown["user"], shown["port"], shown["tags"]) == ("bee", shared_node.port, ["cuda"])
    assert shown["keep_alive"] == "2m"

    rbee("nodes", "remove", "gpu1")
    assert rbee.inventory.read_text().rstrip() == INVENTORY.rstrip()


def test_add_without_anyone_to_ask_refuses_an_unseen_host_key(rbee: Rbee, shared_node: ContainerNode) -> None:
    result = add(rbee, shared_node, status=4)
    option = f"--host-key {shared_node.fingerprint()}"
    assert f"rbee nodes add … {option}" in result.stderr
    assert not rbee.inventory.exists()
    added = add(rbee, shared_node, *option.split(), "--json").lines()[-1]
    accepted = {"fingerprint": shared_node.fingerprint(), "algorithm": "ssh-ed25519", "accepted_by": "--host-key"}
    assert added["host_key"] == accepted
    (entry,) = (entry for entry in rbee("audit", "list", "--json").json() if entry["outcome"] == "ok")
    assert (entry["host_key"], entry["accepted_by"]) == (shared_node.fingerprint(), "--host-key")


def test_ping_shows_each_node_and_fails_for_those_that_do_not_answer(
    rbee: Rbee, shared_node: ContainerNode, free_port: int
) -> None:
    dead = f'[nodes.dead]\nhost = "127.0.0.1"\nport = {free_port}\n'
    rbee.inventory.write_text(shared_node.inventory() + dead)
    result = rbee("nodes", "ping", status=10)
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[1:]}
    assert rows["gpu1"] == "ok"
    assert rows["dead"] == "FAILED"
    assert rbee("nodes", "ping", "gpu1").stdout.count("ok") == 1


def test_check_says_what_a_bare_node_lacks_and_how_to_get_it(rbee: Rbee, shared_node: ContainerNode) -> None:
    rbee.inventory.write_text(shared_node.inventory())
    findings = rbee("nodes", "check", "gpu1", "--json").json()
    told = " ".join(f"{finding['title']} {finding['detail']}" for finding in findings).lower()
    for topic in ("python", "glibc", "compiler", "disk", "ram", "forward"):
        assert topic in told, topic
    assert all(finding["fix"] for finding in findings if finding["level"] in {"warning", "error"})


def test_check_sees_a_shell_that_prints(rbee: Rbee, ssh_node: Callable[..., ContainerNode]) -> None:
    node = ssh_node(user="bee-noisy")
    rbee.inventory.write_text(node.inventory())
    findings = rbee("nodes", "check", "gpu1", "--json").json()
    noisy = [finding for finding in findings if "Welcome" in finding["detail"] or "prints" in finding["detail"]]
    assert noisy
    assert noisy[0]["fix"]


def add(rbee: Rbee, node: ContainerNode, *options: str, status: int = 0) -> Result:
    address = f"{node.user}@{node.host}:{node.port}"
    return rbee("nodes", "add", "gpu1", address, "--identity", str(node.key.private), *options, status=status)
