"""What the requests of a job give, in the job's form, and the response that streams it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.serving import sse
from rbee_remote.system.together import all_or_none
from rbee_remote.worker.http.answers.form import Job, Part, Piece
from rbee_remote.worker.http.answers.places import renamed, renamed_line
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import Tracker
from rbee_remote.worker.http.answers.waiting import when_gone
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.service.service import Service

#: What a record gives, and the token that it is of, as in `Choice.feed`.
Given = tuple[list[Piece], "dict[str, Any] | None"]


async def pieces(
    service: Service, job: Job, part: Part, journal: Journal, summary: Summary
) -> AsyncIterator[Given | None]:
    """What each of a request's events gives; None for a heartbeat. Raises the error that ends them."""
    form, taken = job.form, Taken()
    async for record in journal.follow(sse.HEARTBEAT_S):
        if record is None:
            yield None
        elif record.event == "started":
            warnings = [renamed_line(line, job.places) for line in record.data["warnings"]]
            summary.started({**record.data, "warnings": warnings}, taken, counts_prompt=part.counts_prompt)
            early = job.warnings if part is job.parts[0] else ()
            yield form.opening(part, [*early, *warnings], summary), None
        elif record.event == "token":
            yield form.token(part, record.data), record.data
        elif record.event == "done":
            summary.done(record.data, taken)
            _check(service, record.data["finish_reason"])
            yield form.closing(part, record.data, taken), None
        else:
            raise renamed(RemoteError.decode(record.data), job.places)


def _check(service: Service, finish_reason: str) -> None:
    """Raises the RemoteError that an end is which no client asked for."""
    if finish_reason == "canceled" and service.state.is_stopping:
        raise RemoteError(ErrorCode.WORKER_GONE, "the worker is ending")
    if finish_reason == "canceled":
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the request was canceled")
    if finish_reason == "deadline":
        raise RemoteError(ErrorCode.DEADLINE_EXCEEDED, "the request's deadline has passed")


class Stream(Response):
    """A job's answer as SSE, its parts side by side."""

    def __init__(
        self,
        service: Service,
        job: Job,
        journals: list[Journal],
        summary: Summary,
        end: Callable[[], None],
        tracker: Tracker | None,
    ) -> None:
        super().__init__(media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        del self.headers["content-length"]
        self._service = service
        self._job = job
        self._form = job.form
        self._journals = journals
        self._summary = summary
        self._end = end
        self._tracker = tracker

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(when_gone(receive, self._end))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_all(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            self._end()

    async def _send_all(self, send: Send) -> None:
        numbered = enumerate(zip(self._job.parts, self._journals, strict=True))
        tracker, summary = self._tracker, self._summary
        try:
            await all_or_none(self._send_part(send, number, *part) for number, part in numbered)
        except RemoteError as error:
            lines = self._form.error(error)
            await _send_text(send, tracker.error(lines, summary.tokens) if tracker else "".join(lines))
            return
        lines = self._form.ending(summary)
        await _send_text(send, tracker.last(lines, summary.tokens) if tracker else "".join(lines))

    async def _send_part(self, send: Send, number: int, part: Part, journal: Journal) -> None:
        tracker, form = self._tracker, self._form
        async for given in pieces(self._service, self._job, part, journal, self._summary):
            if given is None:
                await _send_text(send, sse.WAITING)
                continue
            told, token = given
            lines = [form.line(piece) for piece in told]
            text = "".join(lines) if tracker is None else tracker.text(number, lines, token)
            if text:
                await _send_text(send, text)


async def _send_text(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
