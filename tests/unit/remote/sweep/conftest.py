"""A node's folders with this payload in them, and real processes that run from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rbee.setup.base.payload import build_payload
from rbee_remote.protocol import Survey, TidyReport, TidyRequest
from rbee_remote.sweep.survey import survey
from rbee_remote.sweep.tidy import tidy
from rbee_remote.system.identity import owner_tag, start_ticks
from rbee_remote.system.interface import this_system
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until


@dataclass
class NodeFolders:
    """Home and run folder of a node that is this machine. Whatever was started here is gone at the end."""

    home: Path
    run_dir: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def payload(self) -> Path:
        return self.home / "payloads" / build_payload().name

    def start(self, *words: str, payload: Path | None = None, python: str = sys.executable) -> subprocess.Popen[bytes]:
        """A payload command in a session of its own; its stdin stays open, so `worker` and `download` wait for it."""
        process = subprocess.Popen(
            [python, "-I", payload or self.payload, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.processes.append(process)
        return process

    def survey(self) -> Survey:
        return survey(this_system(), str(self.home), str(self.run_dir))

    def tidy(self, request: TidyRequest) -> TidyReport:
        return tidy(this_system(), request)

    def request(self, seen: Survey, *, patience_s: float = 2.0) -> TidyRequest:
        """To tidy up all that was seen."""
        return TidyRequest(seen.home, seen.run_dir, seen.processes, seen.files, patience_s)

    def make(self, path: str, content: bytes = b"x", *, idle_s: float = 0.0) -> Path:
        """A file below home, last changed `idle_s` ago."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        age(file, idle_s)
        return file


def age(path: Path, idle_s: float) -> None:
    changed = path.stat().st_mtime - idle_s
    os.utime(path, (changed, changed))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeFolders]:
    run_dir = Path(tempfile.mkdtemp(prefix="rbee-sweep-", dir="/tmp"))  # short, for the sockets
    folders = NodeFolders(tmp_path / "home", run_dir)
    folders.payload.parent.mkdir(parents=True)
    folders.payload.write_bytes(build_payload().data)
    try:
        yield folders
    finally:
        for process in folders.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE_S)
        shutil.rmtree(run_dir)


@pytest.fixture
def dead_owner() -> str:
    """The mark of a process that is gone."""
    process = subprocess.Popen(["sleep", "60"])
    ticks = start_ticks(process.pid)
    process.kill()
    process.wait()
    assert ticks is not None
    return f"--owner={owner_tag(process.pid, ticks)}"


def until_running(process: subprocess.Popen[bytes]) -> None:
    """Returns once the command line is the payload's, not the test's own between fork and exec."""
    path = Path(f"/proc/{process.pid}/cmdline")
    wait_until(lambda: b"-I\0" in path.read_bytes(), PATIENCE_S, lambda: "the process did not start")
