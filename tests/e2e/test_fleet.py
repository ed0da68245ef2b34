"""What one asks of running nodes: workers, hives, logs, models, version."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode

pytestmark = [pytest.mark.container, pytest.mark.model]


@pytest.fixture
def worker(shared_rbee: Rbee, warm_node: ContainerNode) -> Any:
    """The one worker of the node, started where none runs."""
    shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    (found,) = shared_rbee("workers", "list", "--json").json()
    return found


def test_list_and_show_say_the_same_of_a_worker(shared_rbee: Rbee, worker: Any) -> None:
    shown = shared_rbee("workers", "show", worker["id"][:6], "--json").json()
    keys = ("node", "id", "model", "backend", "device", "pid", "socket", "slots", "ctx")
    assert {key: shown[key] for key in keys} == {key: worker[key] for key in keys}
    assert worker["model"] == "smollm2:135m"
    assert worker["options"]["threads"] == 1  # of the container's quota, not of this machine's cores


def test_health_asks_the_worker_itself(shared_rbee: Rbee, worker: Any) -> None:
    (health,) = shared_rbee("workers", "health", "--json").json()
    assert health["id"] == worker["id"]
    assert health["healthy"]


def test_a_stopped_worker_is_gone_when_the_command_ends(
    shared_rbee: Rbee, warm_node: ContainerNode, worker: Any
) -> None:
    shared_rbee("workers", "stop", worker["id"])
    assert warm_node.pids("worker") == []
    assert shared_rbee("workers", "list", "--json").json() == []
    assert len(warm_node.pids("hive")) == 1


def test_an_unreachable_node_is_a_row(shared_rbee: Rbee, warm_node: ContainerNode, free_port: int) -> None:
    known = shared_rbee.inventory.read_text()
    shared_rbee.inventory.write_text(f'{known}\n[nodes.dead]\nhost = "127.0.0.1"\nport = {free_port}\n')
    try:
        result = shared_rbee("workers", "list", status=None)
    finally:
        shared_rbee.inventory.write_text(known)
    assert any(line.startswith("dead") and "unreachable" in line for line in result.stdout.splitlines())


def test_the_hive_tells_its_state_and_stops(shared_rbee: Rbee, warm_node: ContainerNode, worker: Any) -> None:
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    assert [status["hive"]["pid"]] == warm_node.pids("hive")
    assert status["hive"]["workers"] == 1
    shared_rbee("hive", "stop", "gpu1")
    warm_node.assert_quiet()
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    assert status["hive"] is None
    assert warm_node.processes() == []


def test_logs_show_what_happened_and_follow_what_happens(
    shared_rbee: Rbee, warm_node: ContainerNode, worker: Any
) -> None:
    assert worker["id"][:8] in shared_rbee("logs", "gpu1").stdout
    with shared_rbee.start("logs", "gpu1", "--follow", "--lines", "1") as following:
        following.wait_for_pieces(1)
        shared_rbee("workers", "stop", worker["id"])
        shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
        (fresh,) = shared_rbee("workers", "list", "--json").json()
        following.wait_for(fresh["id"][:8], stream="stdout", timeout_s=60)
        following.interrupt()
        assert following.finish().status == 130


def test_models_are_listed_pushed_and_removed(
    shared_rbee: Rbee, warm_node: ContainerNode, model_path: Any, worker: Any
) -> None:
    (known,) = shared_rbee("models", "list", "--json").json()
    assert (known["model"], known["size"]) == ("smollm2:135m", 98_362_432)
    refused = shared_rbee("models", "rm", "gpu1", "smollm2:135m", status=None)
    assert refused.status != 0
    assert "worker" in refused.stderr

    pushed = shared_rbee("models", "push", "gpu1", str(model_path), "--json").lines()[-1]
    assert pushed["sha256"] == known["sha256"]
    assert pushed["model"].startswith("file:")
    answer = shared_rbee("infer", "--node", "gpu1", "--model", pushed["model"], "--max-tokens", "4", "Hello")
    assert answer.stdout.strip()

    for found in shared_rbee("workers", "list", "--json").json():
        shared_rbee("workers", "stop", found["id"])
    shared_rbee("models", "rm", "gpu1", pushed["model"])
    shared_rbee("models", "rm", "gpu1", "smollm2:135m")
    assert shared_rbee("models", "list", "--json").json() == []
    assert not [name for name in warm_node.files("/home/bee/.rbee/node/models") if name.endswith(".gguf")]

    pulled = shared_rbee("models", "pull", "gpu1", "smollm2:135m", "--json").lines()[-1]
    assert pulled["sha256"] == known["sha256"]


def test_version_names_rbee_and_its_protocol(shared_rbee: Rbee) -> None:
    shown = shared_rbee("version", "--json").json()
    assert shown["rbee"]
    assert shown["protocol"] >= 1
