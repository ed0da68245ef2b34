"""`rbee bench` with the real model, on this machine as a node."""

from __future__ import annotations

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import wait_until

pytestmark = pytest.mark.model

SHORT = ("--prompt", "32", "--gen", "8", "--repetitions", "2")


def test_speed_of_a_node(ready_rbee: Rbee) -> None:
    result = ready_rbee("bench", "local", *SHORT)
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["NODE", "MODEL", "SIZE"]
    assert [row.split()[:2] for row in rows] == [["local", "smollm2:135m"]] * 2
    *_, table = ready_rbee("bench", "local", *SHORT, "--json").lines()
    prompt, generation = table
    assert [prompt["test"], generation["test"]] == ["pp32", "tg8"]
    assert prompt["parameters"] == 134_515_008
    for test in table:
        assert len(test["seconds"]) == 2
        assert test["tokens_per_s"] == pytest.approx(sum(test["tokens"] / s for s in test["seconds"]) / 2)
    assert len(ready_rbee.local_workers()) == 1  # the same worker, twice


def test_a_node_that_fails_is_a_row(ready_rbee: Rbee, free_port: int) -> None:
    ready_rbee.inventory.write_text(f'[nodes.dead]\nhost = "127.0.0.1"\nport = {free_port}\n')
    result = ready_rbee("bench", "all", *SHORT, "--json", status=10)
    *_, table, error = result.lines()
    assert [(row["node"], row.get("test")) for row in table] == [("dead", None), ("local", "pp32"), ("local", "tg8")]
    assert table[0]["error"]["code"] == "CONNECTION_TIMEOUT"
    assert error["error"]["code"] == "PARTIAL_FAILURE"


def test_ctrl_c_frees_the_worker_and_work_goes_before_measuring(ready_rbee: Rbee) -> None:
    with ready_rbee.start("bench", "local", "--repetitions", "1000") as running:
        running.wait_for("measuring pp512")
        assert "IN_USE" in ready_rbee("bench", "local", "--json", status=9).stdout
        running.interrupt()
        assert running.finish().status == 130
    wait_until(lambda: _states(ready_rbee) == ["idle"], 30, lambda: f"the worker is {_states(ready_rbee)}")
    assert ready_rbee("infer", "--max-tokens", "4", "Hello").stdout.strip()


def _states(rbee: Rbee) -> list[str]:
    return [worker["state"] for worker in rbee("workers", "list", "--json").json()]
