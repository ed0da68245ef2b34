"""Nodes with homes, disks and Pythons that nobody prepared: `infer` works there, or says in one line why it cannot."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.testbed import images
from tests.testbed.cli import Rbee, Result
from tests.testbed.node import ContainerNode, start_node

pytestmark = [pytest.mark.container, pytest.mark.model]

#: A shell's whole vocabulary, more bytes than a socket's path may have, and a dash where options begin.
ODD = """-Ü x 'q' "d" $HOME `id` 100%s \\t {a,b}*? """ + "long" * 16
#: docker mounts them noexec unless told.
MOUNTS = {
    "/mnt/ro": "ro,exec",
    "/mnt/noexec": "mode=1777",
    "/mnt/small": "exec,mode=1777,size=100m",
    "/mnt/filling": "exec,mode=1777,size=500m",
}
FILL = "dd if=/dev/zero of=/mnt/filling/filler bs=4k"
INFER = ("infer", "--max-tokens", "4", "Hello")


@pytest.fixture(scope="module")
def node(key: Any, bootstrapped_image: str) -> Iterator[ContainerNode]:
    """A node with runtime and model for user bee at the default home, and file systems of every kind."""
    container, node = start_node(key, image=bootstrapped_image, tmpfs=MOUNTS)
    yield node
    container.stop()


def use(rbee: Rbee, node: ContainerNode, **extra: str) -> None:
    """Make `node` this keeper's only one, with further keys of its table."""
    rbee.inventory.write_text(
        node.inventory(**{key: json.dumps(value, ensure_ascii=False) for key, value in extra.items()})
    )


def move_in(node: ContainerNode, user: str, home: str) -> None:
    """Give a user what rbee needs at `home`, as if it had been bootstrapped there."""
    node.exec(f"mkdir -p '{home}' && cp -a /home/bee/.rbee/node/. '{home}' && chown -R {user}: '{home}'")


def answers(result: Result) -> bool:
    return bool(result.stdout.strip())


def test_a_home_with_every_odd_character_and_a_strict_umask(rbee: Rbee, node: ContainerNode) -> None:
    node.exec("sed -i '1i umask 077' /home/bee/.bashrc")
    before = node.exec("find /home/bee -printf '%y %m %p\\n' | sort")
    use(rbee, node, home=f"/home/bee/{ODD}/rbee")
    assert answers(rbee(*INFER, "--node", "gpu1"))
    assert "worker" in rbee("logs", "gpu1").stdout
    rbee("uninstall", "gpu1", "--models", "--yes")
    assert node.exec("find /home/bee -printf '%y %m %p\\n' | sort") == before
    node.assert_quiet()


@pytest.mark.parametrize(
    ("home", "code", "words"),
    [
        ("/mnt/ro/rbee", "BOOTSTRAP_FAILED", "cannot be written"),
        ("/mnt/noexec/rbee", "NODE_UNSUPPORTED", "noexec"),
        ("/root/rbee", "BOOTSTRAP_FAILED", "cannot be written"),
        ("/mnt/small/rbee", "DISK_FULL", "104 MB free"),
    ],
)
def test_a_home_that_cannot_be_used_is_refused_with_a_way_out(
    rbee: Rbee, node: ContainerNode, home: str, code: str, words: str
) -> None:
    use(rbee, node, home=home)
    error = rbee(*INFER, "--node", "gpu1", "--json", status=5).lines()[-1]["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert "home" in error["hint"]
    assert node.exec("find /mnt/noexec /mnt/small -mindepth 1") == ""


def test_a_disk_that_fills_up_on_the_way(rbee: Rbee, node: ContainerNode) -> None:
    use(rbee, node, home="/mnt/filling/rbee")
    with rbee.start(*INFER, "--node", "gpu1", "--json") as running:
        running.wait_for("uploading wheels", stream="stdout")
        node.try_exec(FILL)
        full = running.finish()
    assert full.status == 5
    error = full.lines()[-1]["error"]
    assert error["code"] == "DISK_FULL"
    assert error["details"]["needed_mb"] > error["details"]["free_mb"]  # what came before it was full may free some
    assert node.exec("ls /mnt/filling/rbee/runtimes/*/bin 2>/dev/null || true") == ""

    node.exec("rm /mnt/filling/filler")
    assert answers(rbee(*INFER, "--node", "gpu1"))
    assert node.exec("find /mnt/filling -name '*.part-*'") == ""
    node.try_exec(FILL)
    assert answers(rbee(*INFER, "--node", "gpu1"))  # though not even a log can be written

    rbee("hive", "stop", "gpu1")
    node.exec("rm -f /mnt/filling/rbee/models/* /mnt/filling/filler")
    node.try_exec(FILL)
    error = rbee(*INFER, "--node", "gpu1", "--json", status=5).lines()[-1]["error"]  # the hive starts, the model waits
    assert (error["code"], error["details"]["needed_mb"]) == ("DISK_FULL", 99)
    node.exec("rm /mnt/filling/filler")
    assert answers(rbee(*INFER, "--node", "gpu1"))
    rbee("uninstall", "gpu1", "--models", "--yes")
    assert node.exec("find /mnt/filling -mindepth 1") == ""


def test_a_zoo_of_pythons(rbee: Rbee, ready_node: Callable[..., ContainerNode]) -> None:
    """The only Python that will do prints when it starts, and lies where no PATH of this session leads."""
    node = ready_node()
    node.exec(
        "mkdir /opt/python && mv /usr/bin/python3.11 /opt/python && ln -sf /nowhere/python3 /usr/bin/python3\n"
        "install -d /home/bee/.local/bin && cd /usr/local/bin\n"
        "printf '#!/bin/sh\\necho 3.8.10 1 /usr/local/bin/python3.10\\n' >python3.10\n"
        "printf '#!/bin/sh\\nexit 1\\n' >python3.13\n"
        "cd /home/bee/.local/bin\n"
        "printf '#!/bin/sh\\necho warning: this is old; exec /opt/python/python3.11 \"$@\"\\n' >python3.12\n"
        "chmod 755 * /usr/local/bin/*"
    )
    use(rbee, node)
    assert answers(rbee(*INFER, "--node", "gpu1"))
    node.exec("rm -rf /opt/python")
    assert answers(rbee(*INFER, "--node", "gpu1")), "a worker that runs goes on"
    rbee("uninstall", "gpu1", "--models", "--yes")  # needs no Python
    node.assert_quiet()
    error = rbee("infer", "--node", "gpu1", "--json", "Hello", status=5).lines()[-1]["error"]
    assert (error["code"], "apt install python3" in error["hint"]) == ("NODE_UNSUPPORTED", True)


def test_two_users_of_one_node_one_without_home_variable_and_umask_and_behind_a_link(
    rbee: Rbee, shared_rbee: Rbee, node: ContainerNode
) -> None:
    move_in(node, "bee-bash", "/srv/bee bash")
    node.exec("install -d -o bee-bash /home/bee-bash/.rbee && ln -sfn '/srv/bee bash' /home/bee-bash/.rbee/node")
    node.exec("echo 'umask 000; unset HOME' > /home/bee-bash/.bashrc")
    use(rbee, node)
    use(shared_rbee, node, user="bee-bash")
    with rbee.start(*INFER, "--node", "gpu1") as first, shared_rbee.start(*INFER, "--node", "gpu1") as second:
        assert [answers(command.finish()) for command in (first, second)] == [True, True]
    assert len(node.pids("hive")) == 2
    mine, theirs = (keeper("workers", "list", "--json").json() for keeper in (rbee, shared_rbee))
    assert [len(mine), len(theirs)] == [1, 1]
    assert mine[0]["id"] != theirs[0]["id"]
    assert node.try_exec("ls /tmp/rbee-$(id -u bee) /home/bee/.rbee/node", user="bee-bash")[0] != 0
    open_to_others = (
        "find '/srv/bee bash/log' '/srv/bee bash/payloads' /tmp/rbee-$(id -u bee-bash) -perm /077 ! -name '*.zip'"
    )
    assert node.exec(open_to_others) == ""
    rbee("uninstall", "gpu1", "--now")
    assert answers(shared_rbee(*INFER, "--node", "gpu1"))
    shared_rbee("uninstall", "gpu1", "--models", "--yes")
    node.assert_quiet()
    assert node.exec("find '/srv/bee bash'").split("\n")[:-1] == ["/srv/bee bash"]


def test_one_home_shared_by_two_nodes(rbee: Rbee, key: Any, bootstrapped_image: str) -> None:
    volume = f"rbee-test-{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as stack:
        stack.callback(remove_volume, volume)
        nodes = []
        for name in ("one", "two"):
            container, node = start_node(key, name=name, image=bootstrapped_image, volumes={volume: "/home/bee/.rbee"})
            stack.callback(container.stop, delete_volume=False)
            nodes.append(node)
        one, two = nodes
        rbee.inventory.write_text(one.inventory() + two.inventory())
        running = [stack.enter_context(rbee.start(*INFER, "--node", node.name)) for node in nodes]
        assert [answers(command.finish()) for command in running] == [True, True]
        assert [len(node.pids("hive")) for node in nodes] == [1, 1]

        with rbee.start("infer", "--node", "two", "--max-tokens", "200", "--seed", "1", "A very long story.") as story:
            story.wait_for_pieces(3)
            told = rbee("uninstall", "one").stderr
            assert f"on {two.exec('uname -n').strip()} too: if that is a shared folder, it is gone there" in told
            one.assert_quiet()
            assert story.finish().status == 0
        assert len(two.pids("worker")) == 1
        assert answers(rbee(*INFER, "--node", "two"))
        rbee("uninstall", "two", "--models", "--yes")
        two.assert_quiet()


def remove_volume(name: str) -> None:
    with contextlib.closing(images.engine()) as client:
        client.volumes.get(name).remove()
