"""A program that is run: its status, what stops it, and what cannot be run at all."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.launch.run import run_program

#: Runs a program as rbee does, its words being the script's arguments.
RUNNER = """\
import asyncio, os, sys
from rbee.launch.run import run_program
sys.exit(asyncio.run(run_program(sys.argv[1:], os.environ)))
"""
#: A shell's job that stops, and goes on.
JOB = '"$@"; echo "stopped $?"; fg >/dev/null; echo "ended $?"'


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", 143)])
async def test_the_status_is_the_programs(script: str, status: int) -> None:
    assert await run_program(["sh", "-c", script], os.environ) == status


async def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    program = tmp_path / "codex"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o700)
    with pytest.raises(UsageError, match=r"cannot start .*/codex: Exec format error"):
        await run_program([str(program)], os.environ)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="macOS has it from Python 3.13 on")
def test_the_shell_gets_its_terminal_back_from_a_program_that_stops_itself() -> None:
    stops = ["sh", "-c", "kill -STOP $$; exit 7"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "-mc", JOB, "sh", sys.executable, "-c", RUNNER, *stops])
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how Linux says that nobody has the terminal any more
        pass
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert b"stopped 148" in said
    assert said.endswith(b"ended 7\r\n")
