"""What the real systems see and do. psutil's works on Linux as well, and is held against the same expectations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rbee_remote.system.identity import start_ticks
from rbee_remote.system.interface import System
from rbee_remote.system.linux import LinuxSystem
from rbee_remote.system.with_psutil import PsutilSystem
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until


@pytest.fixture(params=[LinuxSystem, PsutilSystem])
def system(request: pytest.FixtureRequest) -> System:
    made: System = request.param()
    return made


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Has a file open, and an argument that is no UTF-8."""
    with (tmp_path / "open").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", "import time; print(1, flush=True); time.sleep(60)", b"\xff\n --id=1"],
            stdin=file,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_is_seen_as_it_is(system: System, child: subprocess.Popen[bytes]) -> None:
    seen = system.find(child.pid)
    assert seen is not None
    assert (seen.pid, seen.start_ticks, seen.uid) == (child.pid, start_ticks(child.pid), os.geteuid())
    assert (seen.parent, seen.group, seen.session) == (os.getpid(), child.pid, child.pid)
    assert seen.runs
    assert seen.state in ("S", "R")
    assert 0 <= seen.age_s < 60
    assert seen.rss > 10**6
    assert os.fsencode(seen.argv[-1]) == b"\xff\n --id=1"
    assert seen.name in {process.name for process in system.processes()}


def test_whoever_asks_is_not_among_them(system: System) -> None:
    assert os.getpid() not in {process.pid for process in system.processes()}


def test_a_pid_without_a_process_is_nobody(system: System) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert system.find(process.pid) is None
    assert system.find(0) is None or system.find(0).pid == 0  # type: ignore[union-attr]  # macOS has one


def test_a_signal_reaches_only_the_process_that_was_meant(system: System, child: subprocess.Popen[bytes]) -> None:
    seen = system.find(child.pid)
    assert seen is not None
    assert not system.signal(replace(seen, start_ticks=seen.start_ticks + 1), signal.SIGKILL)
    assert not system.signal(replace(seen, uid=seen.uid + 1), signal.SIGKILL)
    assert child.poll() is None
    assert system.signal(seen, signal.SIGSTOP)
    wait_until(lambda: (now := system.find(child.pid)) is not None and now.state == "T", PATIENCE_S, lambda: "runs on")
    assert system.signal(seen, signal.SIGKILL)
    wait_until(lambda: (now := system.find(child.pid)) is None or not now.runs, PATIENCE_S, lambda: "it is still there")
    child.wait()
    assert not system.signal(seen, signal.SIGKILL)


@pytest.mark.parametrize("error", [PermissionError(), OSError(38, "Function not implemented"), AttributeError()])
def test_where_there_are_no_pidfds_it_goes_by_pid_after_a_look(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_: int) -> int:
        raise error

    monkeypatch.setattr(os, "pidfd_open", refuse)
    system = LinuxSystem()
    seen = system.find(child.pid)
    assert seen is not None
    assert not system.signal(replace(seen, start_ticks=1), signal.SIGKILL)
    assert child.poll() is None
    assert system.signal(seen, signal.SIGKILL)
    assert child.wait(PATIENCE_S) == -signal.SIGKILL


def test_open_files_and_working_folders_are_mentions(
    system: System, child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = system.mentions([str(tmp_path)])
    assert (child.pid, str(tmp_path / "open")) in found
    assert system.mentions([str(tmp_path)[:-1]]) == []


def test_what_runs_in_a_container_is_known() -> None:
    words = ["unshare", "--user", "--pid", "--fork", "--kill-child", "sleep", "60"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        outside = psutil.Process(process.pid)
        wait_until(lambda: outside.children() or process.poll() is not None, 10, lambda: "it starts nothing")
        inside = [] if process.poll() is not None else outside.children()
        if not inside:
            pytest.skip("this machine makes no pid namespaces")
        assert LinuxSystem().is_contained(inside[0].pid)
        assert not LinuxSystem().is_contained(process.pid)
        assert not LinuxSystem().is_contained(2**22 + 1)
    finally:
        process.kill()
        process.wait()
