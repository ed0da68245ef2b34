"""A job at a terminal, as a shell with job control has it: in a process group of its own, in the foreground."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]

#: The shell: it says when the job has stopped and how it ended, and brings it back to the foreground on "fg".
_SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
reading, writing = os.pipe()
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.read(reading, 1)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
os.setpgid(job, job)
os.tcsetpgrp(0, job)
before = termios.tcgetattr(0)
os.write(writing, b"!")
print("job", job, flush=True)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    restored = termios.tcgetattr(0) == before
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpid())
    print("[stopped]", "restored" if restored else "CHANGED", flush=True)
    assert sys.stdin.readline() == "fg\\n"
    os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGCONT)
os.tcsetpgrp(0, os.getpid())
print("[ended]", os.waitstatus_to_exitcode(status), "restored" if restored else "CHANGED", flush=True)
"""


class Terminal:
    """words: of the job, for Python. screen: all that was written to it so far."""

    def __init__(self, *words: str, env: Mapping[str, str], size: tuple[int, int] = (80, 24)) -> None:
        self.screen = ""
        self._shell, self._fd = pty.fork()
        if self._shell == 0:
            paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}"}
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
            os.execve(sys.executable, [sys.executable, "-c", _SHELL, *words], {**os.environ, **paths, **env})
        self.wait_for("job ")
        self.wait_for("\r\n")
        self.job = int(self.screen.split()[1])

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def resize(self, cells: int, lines: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, cells, 0, 0))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.job, number)

    def wait_for(self, text: str, after: int = 0) -> int:
        """Until it was written, from that place on; the place behind it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.screen[after:]:
            assert time.monotonic() < deadline, self.screen[-3000:]
            try:
                piece = os.read(self._fd, 65536)
            except OSError:  # the shell has ended
                piece = b""
            assert piece, f"{text!r} was never written: {self.screen[-3000:]}"
            self.screen += piece.decode(errors="replace")
        return self.screen.index(text, after) + len(text)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: Any) -> None:
        for pid in (getattr(self, "job", 0), self._shell):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.waitpid(self._shell, 0)
        os.close(self._fd)
