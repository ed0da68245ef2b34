"""`rbee gc` on real nodes: what it ends, what it removes, and what it leaves alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import assets
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, start_node, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

HOME = "/home/bee/.rbee/node"
ASK = ("--max-tokens", "1", "Hello")


@pytest.fixture(scope="module")
def nodes(key: Any, bootstrapped_image: str, shared_rbee: Rbee) -> Iterator[list[ContainerNode]]:
    """gpu1 and gpu2, set up, known to the shared keeper."""
    with ExitStack() as stack:
        started = []
        for name in ("gpu1", "gpu2"):
            container, node = start_node(key, name=name, image=bootstrapped_image)
            stack.callback(container.stop)
            started.append(node)
        shared_rbee.inventory.write_text("\n".join(node.inventory() for node in started))
        yield started


@pytest.fixture
def node(nodes: list[ContainerNode]) -> ContainerNode:
    """gpu1; a worker of an earlier test may be there still."""
    return nodes[0]


@pytest.fixture
def second_rbee(shared_rbee: Rbee, tmp_path: Path) -> Iterator[Rbee]:
    """Another keeper with the same nodes."""
    (tmp_path / "keeper").mkdir()
    (tmp_path / "home").mkdir()
    shutil.copy(shared_rbee.inventory, tmp_path / "keeper")
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as run_dir:
        yield Rbee(tmp_path / "keeper", Path(run_dir), dict(shared_rbee.env))


def worker_of(node: ContainerNode) -> int:
    (pid,) = node.pids("worker")
    return pid


def test_idle_workers_of_two_hosts_are_stopped_and_then_there_is_nothing_to_say(
    shared_rbee: Rbee, nodes: list[ContainerNode], node: ContainerNode
) -> None:
    with ExitStack() as stack:
        words = ("infer", "--keep-alive", "1h", *ASK)
        running = [stack.enter_context(shared_rbee.start(*words, "--node", each.name)) for each in nodes]
        assert [command.finish().status for command in running] == [0, 0]
    quiet = shared_rbee("gc")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert [len(each.pids("worker")) for each in nodes] == [1, 1]

    done = shared_rbee("gc", "--older-than", "0s")
    lines = sorted(done.stdout.splitlines())
    assert [line.split(" (")[0].rsplit(" ", 1)[0] for line in lines] == ["gpu1: stopped worker", "gpu2: stopped worker"]
    assert [each.pids("worker") for each in nodes] == [[], []]
    assert shared_rbee("workers", "list", "--json").json() == []
    quiet = shared_rbee("gc", "--older-than", "0s")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_busy_worker_is_never_touched(shared_rbee: Rbee, node: ContainerNode, tmp_path: Path) -> None:
    words = ("infer", "--node", "gpu1", "--max-tokens", "3000", "--json", "Tell me a very long story.")
    with shared_rbee.start(*words, "--grammar", str(assets.long_answer(tmp_path))) as running:
        running.wait_for('"token"', stream="stdout")
        told = shared_rbee("gc", "--node", "gpu1", "--older-than", "0s", "--json").json()
        assert told["actions"] == []
        assert "it is" in " ".join(kept["why"] for kept in told["kept"] if kept["what"].startswith("worker "))
        so_far = running.text("stdout").count('"token"')
        wait_until(lambda: running.text("stdout").count('"token"') > so_far, 30, lambda: running.text("stderr"))
        running.interrupt()
        assert running.finish().status == 130


def test_another_keepers_lease_is_respected(shared_rbee: Rbee, second_rbee: Rbee, node: ContainerNode) -> None:
    second_rbee("infer", "--node", "gpu1", *ASK)
    pid = worker_of(node)
    told = shared_rbee("gc", "--node", "gpu1", "--older-than", "0s", "--json").json()
    assert told["actions"] == []
    second_id = (second_rbee.home / "keeper-id").read_text().strip()
    assert f"keeper {second_id} holds it" in " ".join(kept["why"] for kept in told["kept"])
    assert worker_of(node) == pid


def test_a_worker_that_was_stopped_when_its_hive_was_killed(
    shared_rbee: Rbee, second_rbee: Rbee, node: ContainerNode
) -> None:
    """It is explained by a dry run, and ended once by two keepers who clean up at the same time."""
    shared_rbee("infer", "--node", "gpu1", *ASK)
    (hive,), pid = node.pids("hive"), worker_of(node)
    node.exec(f"kill -STOP {pid}; kill -KILL {hive}")
    before, registry = listing(node), (shared_rbee.home / "workers.db").read_bytes()

    def explained() -> str:
        return shared_rbee("gc", "--node", "gpu1", "--dry-run").stdout

    wait_until(lambda: "would end worker" in explained(), 60, explained)  # a young one gets a moment
    assert f"(pid {pid}): the hive that started it (pid {hive}) is gone, and it does not answer" in explained()
    assert listing(node) == before
    assert (shared_rbee.home / "workers.db").read_bytes() == registry
    assert worker_of(node) == pid

    words = ("gc", "--node", "gpu1", "--patience", "1s")
    with shared_rbee.start(*words) as first, second_rbee.start(*words) as second:
        results = [command.finish() for command in (first, second)]
    assert [result.status for result in results] == [0, 0], results
    assert f"(pid {pid})" in results[0].stdout + results[1].stdout
    assert node.processes() == []
    assert node.try_exec(f"cat /proc/{pid}/statm")[0] != 0  # its memory is free
    assert shared_rbee("workers", "list", "--json").json() == []
    assert shared_rbee("infer", "--node", "gpu1", *ASK).stdout


def test_a_hive_that_hangs_is_explained_and_lives(shared_rbee: Rbee, node: ContainerNode) -> None:
    shared_rbee("infer", "--node", "gpu1", *ASK)
    (hive,), pid = node.pids("hive"), worker_of(node)
    node.exec(f"kill -STOP {hive}")
    try:
        told = shared_rbee("gc", "--node", "gpu1", "--older-than", "0s", "--json").json()
        assert (told["actions"], told["errors"]) == ([], [])
        why = {kept["what"]: kept["why"] for kept in told["kept"]}
        assert why[f"hive (pid {hive})"] == "it does not answer, which does not prove that it is dead"
        assert (node.pids("hive"), worker_of(node)) == ([hive], pid)
    finally:
        node.exec(f"kill -CONT {hive}")


def test_old_leftovers_go_and_young_ones_stay(shared_rbee: Rbee, node: ContainerNode) -> None:
    shared_rbee("infer", "--node", "gpu1", *ASK)
    run_dir = shared_rbee("hive", "status", "gpu1", "--json").json()[0]["hive"]["socket"].rpartition("/")[0]
    leftovers = (
        "payloads/{0}000000000000000.zip",
        "models/incoming-{0}0000000000000000000000000000000.gguf.part",
        "models/model.gguf.part-k{0}-00000000",
        "runtimes/.staging-{0}",
        "log/worker-{0}000000000000000.log",
    )
    old, young = ([name.format(digit) for name in leftovers] for digit in ("1", "2"))
    node.exec(
        f"cd {HOME} && mkdir runtimes/.staging-1 runtimes/.staging-2 && "
        + " && ".join(f"touch {name}" for name in (*old, *young) if "staging" not in name)
        + f" && touch -d '8 days ago' {' '.join(old)} && touch -d '6 days ago' {' '.join(young)}",
        user="bee",
    )
    sockets = [f"{run_dir}/worker-{digit * 16}.sock" for digit in "12"]
    for path in sockets:
        listen = f"import socket; socket.socket(socket.AF_UNIX).bind('{path}')"
        node.exec(f'python3 -c "{listen}"', user="bee")
    node.exec(f"touch -d '1 minute ago' {sockets[0]}", user="bee")

    told = shared_rbee("gc", "--node", "gpu1", "--json").json()
    assert all(action["done"] for action in told["actions"])
    assert {action["path"] for action in told["actions"]} == {*(f"{HOME}/{name}" for name in old), sockets[0]}
    left = node.exec(f"cd {HOME} && ls -d {' '.join(young)} {sockets[1]}").split()
    assert sorted(left) == sorted([*young, sockets[1]])
    assert shared_rbee("infer", "--node", "gpu1", *ASK).stdout
    shared_rbee("gc", "--node", "gpu1", "--older-than", "5d")
    status, _ = node.try_exec(f"cd {HOME} && ls -d {' '.join(young)} 2>/dev/null | grep .")
    assert status != 0


def test_a_node_that_hangs_delays_no_other_and_a_second_gc_stands_back(
    shared_rbee: Rbee, nodes: list[ContainerNode], node: ContainerNode
) -> None:
    log = f"{HOME}/log/worker-3000000000000000.log"
    node.exec(f"mkdir -p {HOME}/log && touch -d '8 days ago' {log}", user="bee")
    sshd = nodes[1].exec("pgrep -o -x sshd").strip()
    nodes[1].exec(f"kill -STOP {sshd}")
    try:
        with shared_rbee.start("gc") as first:
            first.wait_for(f"gpu1: removed log {log}", stream="stdout")
            assert first.process.poll() is None
            second = shared_rbee("gc")
            assert (second.stdout, second.status) == ("", 0)
            assert "another `rbee gc` is running" in second.stderr
            first.interrupt()
            assert first.finish().status == 130
    finally:
        nodes[1].exec(f"kill -CONT {sshd}")
    assert shared_rbee("gc", "--node", "gpu2").status == 0


def listing(node: ContainerNode) -> str:
    """Every file of the user's with its size and time."""
    return node.exec("find /home/bee /tmp -type f -printf '%p %s %T@\\n' | grep -v __pycache__ | sort")
