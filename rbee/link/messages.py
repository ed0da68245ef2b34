"""What client and server say to each other: one JSON object a line.

    client                                                        server
    {"code": …, "words": […], "folder": …, "environment": {…},
     "out": {…}, "err": {…}}                                      {"stdin": true}            it reads standard input
    {"stdin": text, or null for a terminal}                       {"direct": why}            nothing was done
                                                                  {"accepted": pid}          it can be done here
    {"go": true}                                                  {"direct": why}            … until the first output
                                                                  {"begun": true}
                                                                  {"out": text} {"err": text} {"alive": true} …
    {"cancel": true}   Ctrl-C                                     {"end": status, "knows": ["out"]}   of what failed
    {"failed": errno, "of": "out"}   it cannot be written

    {"ask": "status"}                                             {"status": {…}}
    {"ask": "stop"}                                               {"stopping": pid}

Rules
- Before "go" nothing is done that could be seen: a server that was stopped, and wakes up after its client went
  directly, finds nobody who says it.
"""

from __future__ import annotations

import json
import socket

#: As typing's, whose import takes longer than all the others here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of one line; a prompt may come by standard input.
LONGEST = 16 * 2**20
#: A server says "alive" so often, seconds.
HEARTBEAT_S = 2.0
_PIECE = 2**16


class LinkError(Exception):
    """The other side is not there, or not what it should be."""


def line(message: dict[str, Any]) -> bytes:
    """A message as it is sent. Halves of surrogate pairs stay what they are."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def parsed(data: bytes) -> dict[str, Any]:
    """Raises LinkError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LinkError("it does not speak JSON") from error
    if not isinstance(message, dict):
        raise LinkError("it says what is no message")
    return message


class Messages:
    """A client's side of a connection, read with a time limit."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()

    def send(self, message: dict[str, Any], within_s: float = 5.0) -> None:
        """Raises LinkError."""
        try:
            self._connection.settimeout(within_s)
            self._connection.sendall(line(message))
        except OSError as error:
            raise LinkError(f"it cannot be told anything: {error}") from error

    def next(self, within_s: float) -> dict[str, Any]:
        """The next message. Raises LinkError for the end, for silence and for what is none."""
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) > LONGEST:
                raise LinkError("it says too much at once")
            try:
                self._connection.settimeout(max(within_s, 0.001))
                piece = self._connection.recv(_PIECE)
            except OSError as error:
                raise LinkError(f"it does not answer: {error}") from error
            if not piece:
                raise LinkError("it hung up")
            self._data += piece
        message = bytes(self._data[:end])
        del self._data[: end + 1]
        return parsed(message)
