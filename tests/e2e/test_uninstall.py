"""`rbee uninstall` proves itself: a node is afterwards what it was before the first contact."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

#: What sshd and the system write by themselves when somebody logs in.
VOLATILE = " -o ".join(
    f"-path {path}" for path in ("/proc", "/sys", "/dev", "/run/sshd", "/run/utmp", "/run/motd.dynamic", "/var/log")
)
HOME = "/home/bee/.rbee/node"
INFER = ("infer", "--node", "gpu1", "--max-tokens", "4", "Hello")


def everything(node: ContainerNode) -> dict[str, list[str]]:
    """Every file with type, mode, owner and size; every process but those of logins; every socket that listens."""
    files = node.exec(f"find / -xdev \\( {VOLATILE} \\) -prune -o -printf '%y %m %u %p %l\\n' | sort").splitlines()
    processes = node.exec("ps -ww -e -o args=").splitlines()
    ours = ("sshd:", "ps ", "/bin/sh -c")
    sockets = node.exec("cat /proc/net/unix | sed 1d | awk '{ print $8 }'").split() + node.listening_tcp()
    return {
        "files": files,
        "processes": sorted(line for line in processes if not line.startswith(ours)),
        "sockets": sorted(map(str, sockets)),
    }


def changes(before: dict[str, list[str]], node: ContainerNode) -> dict[str, set[str]]:
    """What is there now and was not, or the other way round."""
    now = settled(node)
    return {key: set(now[key]) ^ set(before[key]) for key in now if now[key] != before[key]}


def settled(node: ContainerNode) -> dict[str, list[str]]:
    """`everything` once sshd has let go of the last login."""
    wait_until(lambda: "sshd: bee" not in node.exec("ps -e -o args="), 10, lambda: "a login goes on")
    return everything(node)


def test_a_node_is_what_it_was(rbee: Rbee, shared_rbee: Rbee, ssh_node: Callable[..., ContainerNode]) -> None:
    """After an interrupted bootstrap, and after the first contact of two keepers at once with all that follows."""
    node = ssh_node()
    for keeper in (rbee, shared_rbee):
        keeper.inventory.write_text(node.inventory())
    before = settled(node)

    with rbee.start(*INFER) as running:
        running.wait_for("uploading wheels")
        running.kill()
    rbee("uninstall", "gpu1")
    assert changes(before, node) == {}  # an interrupted bootstrap

    with rbee.start(*INFER) as mine, shared_rbee.start(*INFER) as theirs:
        results = [command.finish() for command in (mine, theirs)]
    assert [(result.status, bool(result.stdout.strip())) for result in results] == [(0, True), (0, True)], results
    assert len(node.pids("hive")) == 1
    (worker,) = node.pids("worker")
    runtimes = node.exec(f"ls -A {HOME}/runtimes | grep -v -e ^uv- -e wheels").split()
    assert len(runtimes) == 1
    rbee("models", "show", "smollm2:135m", "--node", "gpu1")
    assert_refused_for(rbee, shared_rbee, node)

    node.exec(f"kill -SEGV {worker}")
    rbee("gc", "--node", "gpu1")
    assert rbee("uninstall", "gpu1", "--models", status=2).stderr.splitlines()[-1] == "hint: add --yes"
    plan = rbee("uninstall", "gpu1", "--models", "--yes", "--dry-run", "--json").json()
    assert "hive" in plan["processes"]
    assert plan["freed_mb"] > 200
    assert len(node.pids("hive")) == 1

    done = rbee("uninstall", "gpu1", "--models", "--yes", "--json").lines()[-1]
    assert done["removed"] == plan["removed"]
    assert changes(before, node) == {}
    assert rbee("workers", "list", "--json").json() == []
    again = rbee("uninstall", "gpu1", "--models", "--yes")
    assert "nothing of rbee is on gpu1" in again.stderr
    assert "rbee nodes remove gpu1" in again.stderr


def assert_refused_for(rbee: Rbee, other: Rbee, node: ContainerNode) -> None:
    """The other keeper's lease holds the worker."""
    error = rbee("uninstall", "gpu1", "--json", status=9).lines()[-1]["error"]
    keeper_id = (other.home / "keeper-id").read_text().strip()
    assert error["details"]["keeper"] == keeper_id
    assert keeper_id in error["message"]
    assert "--now" in error["hint"]
    assert len(node.pids("worker")) == 1


def test_a_hive_that_hangs_and_files_of_somebody_else(rbee: Rbee, ready_node: Callable[..., ContainerNode]) -> None:
    node = ready_node()
    rbee.inventory.write_text(node.inventory())
    rbee(*INFER)
    (hive,) = node.pids("hive")
    stuck = f"{HOME}/payloads/0123456789abcdef.zip"
    node.exec(f"kill -STOP {hive}; touch {HOME}/models/mine.gguf; mkdir {stuck}; touch {stuck}/file")

    error = rbee("uninstall", "gpu1", "--json", status=5).lines()[-1]["error"]
    assert f"{stuck} on gpu1 cannot be removed" in error["message"]
    assert node.processes() == []

    node.exec(f"rm -r {stuck}")
    result = rbee("uninstall", "gpu1", "--models", "--yes")
    assert f"not rbee's, so it stays: {HOME}/models/mine.gguf" in result.stderr
    assert node.files("/home/bee/.rbee") == ["node/models/mine.gguf"]
    node.assert_quiet()
    actions = [line["action"] for line in rbee("audit", "list", "--json").json()]
    assert actions[-2:] == ["uninstall", "uninstall"]
