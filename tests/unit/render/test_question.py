"""Questions at a real terminal: a pseudo-terminal of which the asking process is the session's leader."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]

ASK = """
import asyncio, sys
from rbee.render.question import Questions, can_ask
assert can_ask()
async def main():
    print("got", repr(await getattr(Questions(lambda: None), sys.argv[1])("Sure?")))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("canceled")
"""


class Terminal:
    """A process with a terminal of its own, and somebody who types there."""

    def __init__(self, question: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}"}
            os.execve(sys.executable, [sys.executable, "-c", ASK, question], environment)
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            try:
                self.screen += os.read(self._fd, 4096).decode()
            except OSError:  # the process has ended
                break
        assert text in self.screen

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal(request.param)
    try:
        yield terminal
    finally:
        terminal.close()


confirm = pytest.mark.parametrize("terminal", ["confirm"], indirect=True)
passphrase = pytest.mark.parametrize("terminal", ["passphrase"], indirect=True)


@confirm
@pytest.mark.parametrize(("keys", "answer"), [("y\n", "True"), ("YES\n", "True"), ("n\n", "False"), ("\n", "False")])
def test_only_yes_is_yes(terminal: Terminal, keys: str, answer: str) -> None:
    terminal.wait_for("Sure? [y/N] ")
    terminal.type(keys)
    terminal.wait_for(f"\r\ngot {answer}\r\n")


@confirm
def test_the_end_of_input_is_no(terminal: Terminal) -> None:
    terminal.wait_for("Sure? [y/N] ")
    terminal.type("\x04")
    terminal.wait_for("\r\ngot False\r\n")


@passphrase
def test_a_passphrase_does_not_show(terminal: Terminal) -> None:
    terminal.wait_for("Sure?")
    terminal.type("open sesame\n")
    terminal.wait_for("got 'open sesame'")
    assert terminal.screen.count("open sesame") == 1


@pytest.mark.parametrize("terminal", ["confirm", "passphrase"], indirect=True)
def test_ctrl_c_leaves_at_once(terminal: Terminal) -> None:
    terminal.wait_for("Sure?")
    terminal.type("\x03")
    terminal.wait_for("\r\ncanceled\r\n")
