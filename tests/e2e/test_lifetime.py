"""Nothing outlives its purpose: workers end after their keep-alive, hives without work, whatever the keeper does."""

from __future__ import annotations

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]


def test_an_idle_worker_ends_and_the_next_infer_starts_another(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    words = ("infer", "--node", "gpu1", "--ctx", "512", "--keep-alive", "2s", "--json", "--max-tokens", "2", "Hello")
    stop_workers(shared_rbee)
    first = shared_rbee(*words).lines()[-1]["worker"]
    wait_until(lambda: not warm_node.pids("worker"), 20, lambda: f"still there: {warm_node.processes()}")
    wait_until(lambda: shared_rbee("workers", "list", "--json").json() == [], 10, lambda: "the hive remembers it")
    assert [path for path in warm_node.sockets() if "worker-" in path] == []
    assert shared_rbee(*words).lines()[-1]["worker"] != first
    wait_until(lambda: not warm_node.pids("worker"), 20, lambda: f"still there: {warm_node.processes()}")


def test_a_killed_keeper_changes_nothing(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    stop_workers(shared_rbee)
    words = ("infer", "--node", "gpu1", "--ctx", "512", "--keep-alive", "2s", "--max-tokens", "400", "Tell me a story.")
    with shared_rbee.start(*words) as running:
        running.wait_for_pieces(3)
        running.kill()
        running.finish(10)
    # The answer goes on to its end, and stays for a minute for whoever comes back for it; only then the worker ends.
    wait_until(lambda: not warm_node.pids("worker"), 120, lambda: f"still there: {warm_node.processes()}")
    assert len(warm_node.pids("hive")) == 1


def test_a_killed_hive_takes_its_workers_along(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    (hive,) = warm_node.pids("hive")
    warm_node.exec(f"kill -KILL {hive}")
    wait_until(lambda: not warm_node.processes(), 30, lambda: f"still there: {warm_node.processes()}")
    assert shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello").stdout.strip()


def test_a_hive_without_work_ends(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    hive = status["hive"]
    shared_rbee("hive", "stop", "gpu1")
    home, run_dir = hive["home"], hive["socket"].rpartition("/")[0]
    python = warm_node.exec(f"ls -d {home}/runtimes/*/bin/python").split()[0]
    command = f"{python} -I {home}/payloads/{hive['payload']}.zip hive --home {home} --run-dir {run_dir}"
    warm_node.exec(f"{command} --payload {hive['payload']} --detach --idle-exit 2", user="bee")
    assert len(warm_node.pids("hive")) == 1
    warm_node.assert_quiet(within_s=20)


def stop_workers(rbee: Rbee) -> None:
    for worker in rbee("workers", "list", "--json").json():
        rbee("workers", "stop", worker["id"])
