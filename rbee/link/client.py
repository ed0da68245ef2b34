"""A command line given to whoever holds connections; what it writes is written here.

Rules
- `over_link` is the beginning of every command: nothing heavy is imported before it is clear that it failed.
- Nothing is shown twice and nothing is lost: until the first output the direct way is open; after that a server that
  is gone is told of.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from rbee.link import place
from rbee.link.messages import LONGEST, LinkError, Messages

#: As typing's, whose import takes longer than all the others here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

#: For the server to be reached and to say whether it takes the command; the direct way begins after that.
OFFER_S = 0.15
#: From "go" to "begun": it may have to ask the node whether a silent connection still works.
BEGIN_S = 1.5
#: Without a word, though it says that it is alive every two seconds, after which it counts as gone.
SILENCE_S = 10.0
#: Characters of the output that are kept, to be saved if it ends too early.
_KEPT = 16 * 2**20


class _DirectError(Exception):
    """The direct way is to be taken; nothing was shown."""


class LostError(Exception):
    """The server is gone, and had shown something. printed: what of it stdout got."""

    def __init__(self, why: str, printed: str) -> None:
        super().__init__(why)
        self.printed = printed


class BadOutputError(Exception):
    """stdout or stderr cannot be written, and the server had ended before it heard of that. number: errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


def over_link(words: Sequence[str]) -> int | None:
    """Run a command over the link; its exit status, None where it has to go directly.

    Raises KeyboardInterrupt (canceled before it began, or twice), LostError, BadOutputError.
    """
    if os.environ.get(place.VARIABLE) == "off" or place.COMMANDS.isdisjoint(words):
        return None
    connection = connected()
    if connection is None:
        return None
    with connection:
        try:
            return _Client(connection).run(list(words))
        except (_DirectError, LinkError):
            return None


def connected() -> socket.socket | None:
    """A connection to the server of this home, if one listens and belongs to this user."""
    try:
        home = place.home()
    except FileNotFoundError:  # it is named from a folder that is gone
        return None
    if home is None:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(OFFER_S)
        with place.Folder(home) as path:
            connection.connect(path)
        if place.peer(connection)[1] == os.geteuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None


def ask(question: str, within_s: float = 2.0) -> dict[str, Any] | None:
    """What the server answers to "status" or "stop"; None where there is none, or it does not answer in time."""
    connection = connected()
    if connection is None:
        return None
    with connection:
        messages = Messages(connection)
        try:
            messages.send({"ask": question}, within_s)
            return messages.next(within_s)
        except LinkError:
            return None


class _Client:
    """One command."""

    def __init__(self, connection: socket.socket) -> None:
        self._messages = Messages(connection)
        self._outputs = {"out": _Output(sys.stdout), "err": _Output(sys.stderr)}
        self._canceled = False
        self._shown = False
        self._printed: list[str] = []
        self._kept = 0
        #: By output: errno.
        self._failed: dict[str, int] = {}

    def run(self, words: list[str]) -> int:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup
        interrupt = signal.getsignal(signal.SIGINT)
        for number in before:
            signal.signal(number, signal.default_int_handler)
        try:
            self._offer(words)
            for number in before:
                signal.signal(number, self._cancel)
            if interrupt is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._cancel)
            return self._follow()
        finally:
            for number, handler in (*before.items(), (signal.SIGINT, interrupt)):
                signal.signal(number, handler)

    def _offer(self, words: list[str]) -> None:
        """Until the server has taken the command. Raises _DirectError, LinkError."""
        try:
            folder = os.getcwd()
        except FileNotFoundError as error:
            raise _DirectError from error
        began = time.monotonic()
        request = {
            "code": place.code(), "words": words, "folder": folder, "environment": place.environment(),
            **{name: output.description() for name, output in self._outputs.items()},
        }  # fmt: skip
        self._messages.send(request, OFFER_S)
        message = self._messages.next(OFFER_S - (time.monotonic() - began))
        if "stdin" in message:
            self._messages.send({"stdin": _standard_input()})
            message = self._messages.next(OFFER_S)
        if "accepted" not in message:
            raise _DirectError
        self._messages.send({"go": True}, OFFER_S)
        if "begun" not in self._messages.next(BEGIN_S):
            raise _DirectError

    def _follow(self) -> int:
        """What the command writes, and its exit status."""
        try:
            while True:
                message = self._messages.next(SILENCE_S)
                if "end" in message:
                    return self._ended(message)
                if "direct" in message and not self._shown:
                    raise _DirectError
                for name in self._outputs.keys() & message.keys():
                    self._show(name, message[name])
        except LinkError as error:
            if self._canceled:
                raise KeyboardInterrupt from error
            if not self._shown:
                raise
            raise LostError(str(error), "".join(self._printed)) from error

    def _ended(self, message: dict[str, Any]) -> int:
        """Raises BadOutputError for what the server did not hear of in time."""
        untold = [number for name, number in self._failed.items() if name not in message.get("knows", ())]
        if untold:
            raise BadOutputError(untold[0])
        return int(message["end"])

    def _show(self, name: str, text: str) -> None:
        self._shown = True
        if name == "out" and self._kept < _KEPT:
            self._printed.append(text)
            self._kept += len(text)
        if name in self._failed:
            return
        try:
            self._outputs[name].write(text)
        except OSError as error:
            self._failed[name] = error.errno or 0
            self._tell({"failed": self._failed[name], "of": name})

    def _cancel(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C: the server is told, and says itself that it ended; another one leaves at once."""
        if self._canceled:
            raise KeyboardInterrupt
        self._canceled = True
        self._tell({"cancel": True})

    def _tell(self, message: dict[str, Any]) -> None:
        """Where it cannot be told any more, it may have said all and gone: what it said last is still to be read, or
        that it hung up."""
        try:
            self._messages.send(message)
        except LinkError:
            return


class _Output:
    """stdout or stderr; None, where the caller closed it, goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._descriptor = -1 if stream is None else stream.fileno()
        self._terminal = stream is not None and stream.isatty()
        self._encoding = stream.encoding if self._terminal else "utf-8"

    def description(self) -> dict[str, Any]:
        size = os.get_terminal_size(self._descriptor).columns if self._terminal else None
        return {
            "terminal": self._terminal,
            "encoding": self._encoding,
            "columns": size or None,
            "environ": place.of_terminal(),
        }

    def write(self, text: str) -> None:
        """Raises OSError."""
        data = memoryview(text.encode(self._encoding, "replace"))
        while data and self._descriptor >= 0:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever reads it made it non-blocking
                import select

                select.select([], [self._descriptor], [])


def _standard_input() -> str | None:
    """All of it; None for a terminal, and where it is closed. What cannot be sent is left for the direct way, which
    reads it from where it was put."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise _DirectError from error
    if data is None:  # non-blocking, and nothing is there
        return None
    import io

    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _DirectError from error
    if 6 * len(data) > LONGEST:  # so long as JSON it is at most
        raise _DirectError
    return text
