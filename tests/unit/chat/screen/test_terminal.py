"""`rbee chat` at a terminal of its own: keys, and what of them is a signal."""

from __future__ import annotations

import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.chat.screen.terminal import TerminalView
from rbee.render import Output
from tests.doubles import chat_worker
from tests.doubles.terminal import Terminal
from tests.patience import PATIENCE_S

CTRL_C, CTRL_D = b"\x03", b"\x04"


class AtTerminal:
    """A command at a pseudo-terminal. said: all that it wrote so far."""

    def __init__(self, *words: str, env: dict[str, str]) -> None:
        self.said = b""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "rbee", *words], {**os.environ, **env})
        ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def types(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def until(self, text: bytes) -> None:
        """It wrote this, after what was waited for before; a question of its for the cursor is answered."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.said:
            assert self._read(deadline - time.monotonic()), self.said.decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def status(self) -> int:
        """Its exit status, once it has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline - time.monotonic()):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self._terminal)

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._terminal], [], [], seconds)[0]:
            return False
        try:
            part = os.read(self._terminal, 65_536)
        except OSError:  # how Linux says that nobody has the terminal any more
            return False
        self.said += part
        if b"\x1b[6n" in part:
            self.types(b"\x1b[1;1R")
        return bool(part)


@pytest.fixture
def worker() -> Iterator[Path]:
    with chat_worker.running_worker() as socket:
        yield socket


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(term: str, worker: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    chat_worker.know_worker(home / "workers.db", "local", worker)
    env = {"RBEE_HOME": str(home), "TERM": term, "PYTHONPATH": os.pathsep.join(sys.path), "RBEE_LINK": "off"}
    terminal = AtTerminal("chat", env=env)
    try:
        terminal.until(b">")
        terminal.types(b"never sent" + CTRL_C)
        terminal.types(b"long\r")
        terminal.until(b"line 3")
        terminal.types(CTRL_C)
        terminal.until(b"stopped; what came of the answer is kept")
        terminal.until(b">")
        chat_worker.know_worker(home / "workers.db", "local", worker)
        terminal.types(b"hi\r")
        terminal.until(b"you said: hi")
        terminal.until(b">")
        terminal.types(CTRL_D)
        assert terminal.status() == 0
    finally:
        terminal.close()
    assert b"never" not in (home / "chats.db").read_bytes()


class Narrow(TerminalView):
    def size(self) -> tuple[int, int]:
        return (40, 10)


def test_an_error_is_wrapped_between_words() -> None:
    terminal = Terminal(40, 10)
    view = Narrow(Output(terminal), color=False)
    view.error(UsageError("there is no setting 'temp'", hint="there are temperature, top_p, top_k, min_p, and others"))
    assert terminal.text == (
        "error: there is no setting 'temp'\nhint: there are temperature, top_p,\ntop_k, min_p, and others"
    )
