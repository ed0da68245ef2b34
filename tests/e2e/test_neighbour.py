"""Another user of a node, who knows rbee: what he puts in its way in shared folders gets him nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rbee.node.probe import script
from rbee.registry import Registry
from tests.testbed.cli import Rbee, Result
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

INFER = ("infer", "--node", "gpu1", "--max-tokens", "4")
LOOT = "/home/wasp/loot"
#: Changes the files of a folder quickly between two shapes, for half a minute at most.
SWAP = """\
end=$(($(date +%s) + 30))
while [ "$(date +%s)" -lt "$end" ] && [ ! -e /home/wasp/stop ]; do
  rm -rf "$1"; mkdir -p "$1"; rmdir "$1"; ln -s "$2" "$1"
done
"""
#: Listens where a worker and its hive listened, answers as a worker would, and writes down what it is told.
SQUAT = r"""
import json, os, selectors, socket, sys
selector = selectors.DefaultSelector()
for path in sys.argv[2:]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o777)
    listener.listen()
    selector.register(listener, selectors.EVENT_READ, None)
events = [
    ("started", {"request_id": "r", "prompt_tokens": 1, "max_tokens": 4, "slot": 0}),
    ("token", {"text": "LIES", "tokens": 1}),
    ("done", {"finish_reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
]
form = "id: %d\nevent: %s\ndata: %s\n\n"
body = "".join(form % (number, name, json.dumps(data)) for number, (name, data) in enumerate(events, 1))
answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body
open("/home/wasp/listening", "w").close()
def note(data):
    with open(sys.argv[1], "ab") as loot:
        loot.write(data)
while True:
    for key, _ in selector.select():
        try:
            if key.data is None:
                connection, _ = key.fileobj.accept()
                note(b"somebody came\n")
                selector.register(connection, selectors.EVENT_READ, connection)
                connection.sendall(answer.encode())
                continue
            data = key.data.recv(65536)
            note(data)
        except OSError:  # who came has gone already
            continue
        if not data:
            selector.unregister(key.data)
            key.data.close()
"""


@pytest.fixture(scope="module")
def node(shared_ready_node: ContainerNode) -> ContainerNode:
    """With a neighbour, wasp, and a disk that everybody shares."""
    shared_ready_node.exec(
        "useradd --create-home --shell /bin/bash wasp && mkdir -m 1777 /scratch && mkdir -m 777 /scratch/open"
    )
    return shared_ready_node


@pytest.fixture
def keeper(shared_rbee: Rbee, node: ContainerNode) -> Rbee:
    use(shared_rbee, node)
    return shared_rbee


def use(rbee: Rbee, node: ContainerNode, **extra: str) -> None:
    rbee.inventory.write_text(node.inventory(**{key: json.dumps(value) for key, value in extra.items()}))


def run_folder(node: ContainerNode) -> str:
    return f"/tmp/rbee-{node.exec('id -u bee').strip()}"


@contextmanager
def in_the_background(node: ContainerNode, command: str) -> Iterator[None]:
    """As the neighbour; ended with all that it started."""
    node.exec(f"rm -f /home/wasp/stop; setsid sh -c '{command}' >/home/wasp/log 2>&1 & true", user="wasp")
    try:
        yield
    finally:
        node.exec("touch /home/wasp/stop; pkill -KILL -u wasp || true")


def is_told_why(result: Result, why: str) -> None:
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert why in error


# --- before anything is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["/home/bee/.rbee/node", "/scratch/bee"])
def test_the_probe_makes_no_file_anywhere(node: ContainerNode, home: str) -> None:
    """Where it makes none, no name can be guessed: it used to write a program into /tmp, and run it."""
    node.exec("cat >/home/bee/probe.sh <<'END'\n" + script(home) + "END")
    times = f"stat -c '%n %y' /tmp /scratch /home/bee {home} 2>/dev/null; true"
    before = node.exec(times)
    assert "end=yes" in node.exec("sh /home/bee/probe.sh", user="bee")
    assert node.exec(times) == before
    node.exec("rm /home/bee/probe.sh")


@pytest.mark.parametrize(
    ("home", "trap", "why"),
    [
        ("/scratch/open/rbee", "true", "/scratch/open can be changed by others"),
        ("/scratch/open/deep/rbee", "mkdir -m 755 /scratch/open/deep", "/scratch/open can be changed by others"),
        ("/scratch/taken", "mkdir -m 777 /scratch/taken", "/scratch/taken belongs to somebody else"),
        ("/scratch/link/rbee", "ln -s /home/bee /scratch/link", "/scratch/link belongs to somebody else"),
        ("/tmp/rbee-home", "mkdir -m 777 /tmp/rbee-home", "/tmp/rbee-home belongs to somebody else"),
    ],
)
def test_a_home_that_others_can_change_is_refused_before_anything_is_there(
    keeper: Rbee, node: ContainerNode, home: str, trap: str, why: str
) -> None:
    node.exec(trap, user="wasp")
    use(keeper, node, home=home)
    before = node.exec("find /scratch /tmp -printf '%y %m %u %p\\n' | sort")
    is_told_why(keeper(*INFER, "Hello", status=5), why)
    for command in (("gc", "--node", "gpu1"), ("uninstall", "gpu1", "--yes"), ("nodes", "check", "gpu1")):
        keeper(*command, status=None)
    assert node.exec("find /scratch /tmp -printf '%y %m %u %p\\n' | sort") == before
    node.exec("rm -rf /scratch/taken /scratch/link /tmp/rbee-home /scratch/open/*")


def test_a_folder_of_ones_own_on_a_shared_disk_will_do(keeper: Rbee, node: ContainerNode) -> None:
    """With whatever the neighbour could guess put in its way, and the loosest of umasks on both machines."""
    node.exec("sed -i '1i umask 000' /home/bee/.bashrc; mkdir -m 755 /scratch/bee; chown bee: /scratch/bee")
    node.exec(f"for n in $(seq 400); do mkfifo /tmp/.rbee-probe-$n; done; ln -s {LOOT} /tmp/.1", user="wasp")
    use(keeper, node, home="/scratch/bee/rbee")
    given = {*keeper.home.rglob("*")}
    before = os.umask(0)
    try:
        assert keeper(*INFER, "Hello").stdout.strip()
        assert keeper("gc", "--node", "gpu1").status == 0
    finally:
        os.umask(before)
    run = run_folder(node)
    others = "\\( -perm /077 -a ! -type l \\) -printf '%m %p\\n'"
    assert node.exec(f"find /scratch/bee/rbee {run} {others}") == ""
    made = [path for path in keeper.home.rglob("*") if path not in given and not path.is_symlink()]
    assert [path for path in made if path.lstat().st_mode & 0o077] == []
    keeper("hive", "stop", "gpu1")
    keeper("uninstall", "gpu1", "--yes", "--models")
    node.exec(f"test ! -e /scratch/bee/rbee && test ! -e {run} && rm -f /tmp/.rbee-probe-* /tmp/.1")
    node.exec("sed -i 1d /home/bee/.bashrc")


# --- sockets ----------------------------------------------------------------------------------------------------------


def test_what_lies_behind_a_neighbours_folder_for_sockets_is_left_alone(keeper: Rbee, node: ContainerNode) -> None:
    """He shows a folder of ours, or one of his own, by turns, while ours is looked at to be removed."""
    run = run_folder(node)
    node.exec("mkdir -p -m 700 /home/bee/own && cd /home/bee/own && touch hive.lock .123 worker-0123456789abcdef.sock")
    node.exec("chown -R bee: /home/bee/own")
    node.exec(f"mkdir -m 755 {run} && cat >/home/wasp/swap.sh <<'END'\n{SWAP}END", user="wasp")
    name = name_of_run_dir()
    with in_the_background(node, f"sh /home/wasp/swap.sh {run}/{name} /home/bee/own"):
        for _ in range(3):
            keeper("uninstall", "gpu1", "--yes", "--dry-run", status=None)
            keeper("gc", "--node", "gpu1", status=None)
        is_told_why(keeper(*INFER, "Hello", status=5), "belongs to somebody else")
        keeper("uninstall", "gpu1", "--yes", status=None)
    assert sorted(node.exec("ls -A /home/bee/own").split()) == [".123", "hive.lock", "worker-0123456789abcdef.sock"]
    node.exec(f"rm -rf {run} /home/bee/own")


def name_of_run_dir() -> str:
    """The last part of its path, for the default home of bee."""
    return hashlib.sha256(b"/home/bee/.rbee/node").hexdigest()[:8]


def test_no_prompt_goes_to_who_sits_in_a_workers_place(keeper: Rbee, node: ContainerNode) -> None:
    """Something cleans /tmp up; the neighbour makes the folder again and listens there, while the row is fresh."""
    run = run_folder(node)
    assert keeper(*INFER, "Hello").stdout.strip()
    (worker,) = keeper("workers", "list", "gpu1", "--json").json()
    folder, name = worker["socket"].rsplit("/", 1)
    assert folder.startswith(run)
    assert keeper(*INFER, "Hello").stdout.strip()  # the row is fresh
    node.exec(f"mv {run} /root/cleaned")
    node.exec(f"mkdir -m 755 {run} && mkdir -m 755 {folder}", user="wasp")
    node.exec(f"cat >/home/wasp/squat.py <<'END'\n{SQUAT}\nEND", user="wasp")
    sockets = " ".join(f"{folder}/{file}" for file in (name, name.replace(".sock", ".keeper"), "hive.sock"))
    with in_the_background(node, f"exec python3 /home/wasp/squat.py {LOOT} {sockets}"):
        wait_until(lambda: node.try_exec("test -e /home/wasp/listening")[0] == 0, 10, lambda: "nobody listens")
        with Registry.open(keeper.home / "workers.db") as registry:
            registry.seen("gpu1", worker["id"])  # on a slow machine a minute has passed
        result = keeper(*INFER, "attack at dawn", status=5)
        is_told_why(result, "belongs to somebody else")
        assert "LIES" not in result.stdout
        for command in (("workers", "list", "gpu1"), ("workers", "health", "gpu1"), ("gc", "--node", "gpu1")):
            keeper(*command, status=None)
    loot = node.exec(f"cat {LOOT}")
    assert "somebody came" in loot  # the row was believed as far as that
    assert "dawn" not in loot
    node.exec(f"rm -rf {run} && mv /root/cleaned {run}")
    assert keeper(*INFER, "Hello").stdout.strip()
    keeper("hive", "stop", "gpu1")
    node.assert_quiet()
