"""Nothing outlives its purpose: workers end after their keep-alive, hives without work, whatever the keeper does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testbed import assets
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]


def test_a_killed_keeper_changes_nothing(shared_rbee: Rbee, warm_node: ContainerNode, tmp_path: Path) -> None:
    """The answer goes on, to its end or for a minute, and is kept for whoever comes back for it; that the worker stays
    for another minute, and ends then, is seen in tests/unit/remote/worker/http/test_resume.py, where a minute is
    shorter. What ends when the hive is killed is in test_hard_failures.py."""
    stop_workers(shared_rbee)
    words = (
        "infer",
        "--node",
        "gpu1",
        "--ctx",
        "2048",
        "--keep-alive",
        "0s",
        "--max-tokens",
        "300",
        "A story, please.",
    )
    with shared_rbee.start(*words, "--grammar", str(assets.long_answer(tmp_path))) as running:
        running.wait_for_pieces(3)
        running.kill()
        running.finish()
    (pid,) = warm_node.pids("worker")
    (worker,) = shared_rbee("workers", "list", "--json").json()
    assert worker["slots_free"] == worker["slots"] - 1, "it does not notice"
    answered = f'grep {worker["id"]} /home/bee/.rbee/node/log/audit.log | grep -E \'"finish": "(length|canceled)"\''
    wait_until(
        lambda: warm_node.try_exec(answered)[0] == 0,
        30,
        lambda: f"workers: {shared_rbee('workers', 'list').stdout}",
        progress=lambda: warm_node.work_done(pid),
    )
    assert warm_node.pids("worker") in ([pid], []), "its minute may be over by now"
    assert len(warm_node.pids("hive")) == 1
    stop_workers(shared_rbee)


def test_a_hive_without_work_ends(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    hive = status["hive"]
    shared_rbee("hive", "stop", "gpu1")
    home, run_dir = hive["home"], hive["socket"].rpartition("/")[0]
    python = warm_node.exec(f"ls -d {home}/runtimes/*/bin/python").split()[0]
    command = f"{python} -I {home}/payloads/{hive['payload']}.zip hive --home {home} --run-dir {run_dir}"
    warm_node.exec(f"{command} --payload {hive['payload']} --detach --idle-exit 2", user="bee")
    assert len(warm_node.pids("hive")) == 1
    warm_node.assert_quiet(within_s=60)


def stop_workers(rbee: Rbee) -> None:
    for worker in rbee("workers", "list", "--json").json():
        rbee("workers", "stop", worker["id"])
