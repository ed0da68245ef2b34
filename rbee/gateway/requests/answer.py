"""What goes to the client, in the order that HTTP has: a head, pieces, an end; or an error, wherever that comes.

Rules
- The head goes out once. Before it an error is a status; after it, an event of the stream.
- A stream that failed has no clean end: neither its last line nor HTTP's. The server closes the connection, by which a
  client that knows nothing of errors in streams sees that something is missing.
- `write` waits for a client that is so slow that no more may lie here for it (`access/readers`), and so does whoever
  reads the worker. What is written counts as given: it will be sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.types import Send

from rbee.gateway.base.interfaces import Reader
from rbee.gateway.requests import errors, headers
from rbee.gateway.requests.errors import Form, Refusal
from rbee.gateway.requests.exchange import Exchange


class Answer:
    """began: the head is out. gave: some of the worker's answer is. is_over: nothing follows. reader: who takes it,
    where the server says."""

    def __init__(self, send: Send, exchange: Exchange, reader: Reader | None = None) -> None:
        self.began = False
        self.gave = False
        self.is_over = False
        self._send = send
        self._exchange = exchange
        self._reader = reader
        self._form: Form = errors.form_of(exchange.path)
        self._is_stream = False

    @property
    def was_cut_off(self) -> bool:
        """Whether the client is gone because it read too slowly."""
        return self._reader is not None and self._reader.was_cut_off

    async def was_taken(self) -> bool:
        """Once the client has taken all of an answer that is over; False where it went away before."""
        return self._reader is None or await self._reader.has_all()

    async def begin_stream(self) -> None:
        if not self.began:
            await self._begin(200, headers.SSE)

    async def comment(self, text: str) -> None:
        """A line of a stream that clients pass over. text: without line ends."""
        await self.begin_stream()
        await self._body(f": {text}\n\n".encode())

    async def pass_on(self, data: bytes) -> None:
        """A piece of the stream that is not yet, or not only, the answer itself."""
        await self._body(data)

    async def write(self, data: bytes, *, has_content: bool = True) -> None:
        """has_content: False while a stream has only begun: what a worker says of an answer before its first token."""
        self.gave = True
        if has_content and self._exchange.first_at is None:
            self._exchange.first_at = time.monotonic()
        await self._body(data)

    async def end(self) -> None:
        self.is_over = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._exchange.over_at = time.monotonic()

    async def begin_whole(self, status: int, head: Mapping[str, str]) -> None:
        """For an answer that is too large to be held: its pieces follow by `write`."""
        await self._begin(status, head)

    async def whole(self, status: int, head: Mapping[str, str], content: bytes) -> None:
        """An answer that is no stream; where the client hears one already, an event of it."""
        if self.began:
            await self.write(b"".join(b"data: %b\n" % line for line in content.splitlines()) + b"\n")
            await self.end()
            return
        await self._begin(status, {**head, "content-length": str(len(content))})
        self.gave, self.is_over = True, True
        self._exchange.first_at = time.monotonic() if status < 400 else None
        await self._send({"type": "http.response.body", "body": content, "more_body": False})
        self._exchange.over_at = time.monotonic()

    async def refuse(self, refusal: Refusal, said: bytes = b"", lines: int = 0) -> None:
        """End with an error. said: a body that tells it in the client's form already. lines: data lines before it."""
        self._exchange.finish = errors.recorded(refusal.status, refusal.code)
        if not self.began:
            content = said or errors.body_of(refusal, self._form)
            await self.whole(refusal.status, {"content-type": "application/json", **refusal.headers}, content)
        elif not self.is_over:
            self.is_over = True
            if self._is_stream:
                await self._body(errors.event_of(refusal, self._form, lines))

    async def _begin(self, status: int, head: Mapping[str, str]) -> None:
        self._is_stream = headers.is_stream(head)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        self.began = True

    async def _body(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
