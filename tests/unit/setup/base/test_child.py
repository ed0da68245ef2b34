"""Children of the keeper, and what becomes of them when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from rbee.setup.base import child

PATIENCE_S = 10.0

#: A keeper that runs a build: what compiles is in a group of its own, as with ninja, which ends it when it is ended.
_KEEPER = """
import asyncio, sys
from rbee.setup.base import child
asyncio.run(child.run([sys.executable, "-c", sys.argv[1]], lambda line: print(line, flush=True)))
"""
_BUILD = """
import os, signal, subprocess, sys, time
compiler = subprocess.Popen(["sleep", "600"], process_group=0)
def end(*_):
    compiler.kill()
    compiler.wait()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), compiler.pid, flush=True)
signal.pause()
"""


def test_a_build_ends_with_a_keeper_that_is_killed() -> None:
    words = [sys.executable, "-c", _KEEPER, _BUILD]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout
        processes = [psutil.Process(int(word)) for word in keeper.stdout.readline().split()]
        keeper.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    for process in alive:
        process.kill()
    assert len(gone) == 2


async def test_a_command_reads_nothing_and_its_status_is_told(tmp_path: Path) -> None:
    heard: list[str] = []
    program = "import sys; print(repr(sys.stdin.read()), sys.argv[1:]); sys.exit(7)"
    assert await child.run([sys.executable, "-c", program, "a b", "$c"], heard.append) == 7
    assert heard == ["'' ['a b', '$c']"]
    assert await child.run(["/bin/sh", "-c", f"kill -s KILL $$; touch {tmp_path / 'no'}"], heard.append) == 128 + 9
    assert not (tmp_path / "no").exists()


async def test_what_a_command_leaves_running_ends_before_the_call_does() -> None:
    heard: list[str] = []
    assert await child.run(["/bin/sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], heard.append) == 0
    assert not os.path.exists(f"/proc/{heard[0]}")  # noqa: PTH110 - the kernel's
