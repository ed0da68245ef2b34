"""Ending a child of the hive: with all that belongs to it, and whatever state it is in."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee_remote.hive import server
from rbee_remote.system import child as child_module
from rbee_remote.system.child import Child
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until

#: Starts a child in a session of its own, writes down its pid, and waits; both ignore SIGTERM where told so.
_PARENT = """\
import os, signal, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    with open(sys.argv[1], "w") as file:
        file.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


async def start(folder: Path, manners: str) -> tuple[Child, int]:
    """A child, and the pid of the grandchild."""
    note = folder / "grandchild"
    command = [sys.executable, "-I", "-c", _PARENT, str(note), manners]
    child = await Child.start(command, config=b"", env=os.environ, log=folder / "log")
    wait_until(lambda: note.exists() and note.read_text().endswith("\n"), PATIENCE_S, lambda: "no grandchild")
    return child, int(note.read_text())


def is_gone(pid: int) -> bool:
    """A zombie whom nobody has asked for yet is gone."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(("manners", "number"), [("polite", signal.SIGTERM), ("deaf", signal.SIGKILL)])
async def test_what_a_child_started_in_another_session_ends_with_it(
    tmp_path: Path, manners: str, number: signal.Signals
) -> None:
    child, grandchild = await start(tmp_path, manners)
    await child.end(patience_s=5.0 if manners == "polite" else 0.2)
    assert await child.wait() == -number
    assert is_gone(grandchild)


async def test_a_stopped_child_ends_by_sigterm(tmp_path: Path) -> None:
    child, grandchild = await start(tmp_path, "polite")
    os.kill(child.identity.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{child.identity.pid}/stat")
    wait_until(lambda: ") T " in stat.read_text(), PATIENCE_S, lambda: "it does not stop")
    await child.end(patience_s=5.0)
    assert await child.wait() == -signal.SIGTERM
    assert is_gone(grandchild)


async def test_the_memory_of_a_gpu_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, _ = await start(tmp_path, "polite")
    await child.end(patience_s=5.0)
    answers = iter([{child.identity.pid}, {child.identity.pid}, {1}])
    monkeypatch.setattr(child_module, "gpu_pids", lambda: next(answers))
    assert await child.freed()
    monkeypatch.setattr(child_module, "gpu_pids", lambda: {child.identity.pid})
    monkeypatch.setattr(child_module, "_GPU_PATIENCE_S", 0.1)
    assert not await child.freed()


def test_payload_and_runtime_are_touched_where_they_are_the_homes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, runtime = tmp_path / "payloads/0.zip", tmp_path / "runtimes/cpu"
    payload.mkdir(parents=True)
    runtime.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    read: Callable[[], list[int]] = lambda: [int(path.stat().st_mtime) for path in (payload, runtime, elsewhere)]  # noqa: E731
    for path in (payload, runtime, elsewhere):
        os.utime(path, (1000, 1000))
    monkeypatch.setattr(server, "__file__", str(payload / "rbee_remote/hive/server.py"))
    monkeypatch.setattr(sys, "prefix", str(elsewhere))
    server.touch_used(tmp_path)
    touched, *rest = read()
    assert touched > 1000
    assert rest == [1000, 1000]
    monkeypatch.setattr(sys, "prefix", str(runtime))
    server.touch_used(tmp_path)
    assert read()[1] > 1000
    assert read()[2] == 1000
