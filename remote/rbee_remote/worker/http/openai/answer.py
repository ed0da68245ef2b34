"""From a job to its response: requests go in, their events come back as one JSON object or as a stream of chunks.

Rules
- All of a job's requests are in, or none.
- Whatever ends a response ends its requests: a client that goes away, an error in one of them, the worker's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, WorkerConfig, encode
from rbee_remote.serving import sse
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.openai.summary import Summary, Taken
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.service.service import Service

T = TypeVar("T")


class Choice(Protocol):
    """One answer, in its endpoint's form. What the first three give are a stream's `choices`."""

    def opening(self) -> list[dict[str, Any]]: ...

    def feed(self, token: dict[str, Any]) -> list[dict[str, Any]]:
        """token: a `TokenEvent` as it stands in a journal's record."""

    def closing(self, finish_reason: str) -> list[dict[str, Any]]: ...

    def whole(self) -> dict[str, Any]:
        """All of it, once it is closed."""


@dataclass(frozen=True, slots=True)
class Part:
    """A request with the choice that it fills. counts_prompt: False for all but the first that share a prompt."""

    request: GenerateRequest
    choice: Choice
    counts_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for. kind, chunk_kind: the `object` of the answer, and of a stream's chunks."""

    id: str
    kind: str
    chunk_kind: str
    parts: tuple[Part, ...]
    stream: bool
    include_usage: bool


def part_ids(count: int) -> list[str]:
    """Ids of requests that belong together: alike but for the number at their end."""
    base = uuid.uuid4().hex[:-4]
    return [f"{base}{number:04x}" for number in range(count)]


async def respond(service: Service, job: Job, request: Request) -> Response:
    """Raises RemoteError where nothing has been sent yet. request: its body must have been read."""
    journals = await _submit(service, job, caller_of(request.headers))

    def end() -> None:
        _end(service, job, journals)

    summary = Summary()
    head = {
        "id": job.id,
        "created": int(time.time()),
        "model": service.config.model,
        "system_fingerprint": _fingerprint(service.config),
    }
    watcher = asyncio.create_task(when_gone(request.receive, end))
    try:
        if job.stream:
            await _settle(journals)
            return _Chunks(service, job, journals, summary, {**head, "object": job.chunk_kind}, end)
        for part, journal in zip(job.parts, journals, strict=True):
            async for _ in _chunks(service, part, journal, summary):
                pass
    except BaseException:
        end()
        raise
    finally:
        watcher.cancel()
    end()
    choices = [part.choice.whole() for part in job.parts]
    whole = {**head, "object": job.kind, "choices": choices, "usage": summary.usage(), "timings": summary.timings()}
    if summary.warnings:
        whole["warnings"] = summary.warnings
    return Response(json.dumps(whole), media_type="application/json")


async def _submit(service: Service, job: Job, caller: Caller) -> list[Journal]:
    journals: list[Journal] = []
    try:
        with service.keep_alive.held():
            for part in job.parts:
                journal = await service.submit(part.request, caller)
                journals.append(journal)
    except BaseException:
        _end(service, job, journals)
        raise
    return journals


def _end(service: Service, job: Job, journals: list[Journal]) -> None:
    """Cancel what still runs, and forget all of it: nobody comes back."""
    for part, journal in zip(job.parts, journals, strict=False):
        service.cancel(part.request.request_id)
        service.journals.forget(part.request.request_id, journal)


async def _settle(journals: list[Journal]) -> None:
    """Wait until each has an event, for a heartbeat at most: what refuses a request at once is to be a status and not a
    line of the stream. Raises the error that it is."""
    with anyio.move_on_after(sse.HEARTBEAT_S):
        for journal in journals:
            record = await anext(journal.follow(sse.HEARTBEAT_S))
            if record is not None and record.event == "error":
                raise RemoteError.decode(record.data)


async def all_or_none(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results. Where one fails, or this is canceled, all of them are over when it ends."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def when_gone(receive: Receive, cancel: Callable[[], object]) -> None:
    """Call `cancel` once the client has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()


async def _chunks(
    service: Service, part: Part, journal: Journal, summary: Summary
) -> AsyncIterator[list[dict[str, Any]] | None]:
    """A stream's chunks from one request's events, as what each has beside its head; None for a heartbeat. Raises the
    error that ends them."""
    choice, taken = part.choice, Taken()
    async for record in journal.follow(sse.HEARTBEAT_S):
        if record is None:
            yield None
        elif record.event == "started":
            summary.started(record.data, taken, counts_prompt=part.counts_prompt)
            warned = {"warnings": list(record.data["warnings"])} if record.data["warnings"] else {}
            yield [{"choices": [each], **warned} for each in choice.opening()]
        elif record.event == "token":
            yield [{"choices": [each]} for each in choice.feed(record.data)]
        elif record.event == "done":
            summary.done(record.data, taken)
            *others, last = choice.closing(_finish_reason(service, record.data["finish_reason"]))
            yield [*({"choices": [each]} for each in others), {"choices": [last], "timings": taken.encode()}]
        else:
            raise RemoteError.decode(record.data)


def _finish_reason(service: Service, reason: str) -> str:
    if reason == "canceled" and service.state.is_stopping:
        raise RemoteError(ErrorCode.WORKER_GONE, "the worker is ending")
    if reason == "canceled":
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the request was canceled")
    if reason == "deadline":
        raise RemoteError(ErrorCode.DEADLINE_EXCEEDED, "the request's deadline has passed")
    return reason


class _Chunks(Response):
    """A job's answer as SSE, its parts side by side."""

    def __init__(
        self,
        service: Service,
        job: Job,
        journals: list[Journal],
        summary: Summary,
        head: dict[str, Any],
        end: Callable[[], None],
    ) -> None:
        super().__init__(media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        del self.headers["content-length"]
        self._service = service
        self._job = job
        self._journals = journals
        self._summary = summary
        self._head = {**head, "usage": None} if job.include_usage else head
        self._end = end

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
        parts = zip(self._job.parts, self._journals, strict=True)
        try:
            await all_or_none(self._send_part(send, part, journal) for part, journal in parts)
        except RemoteError as error:
            await _send_line(send, sse.data(errors.body(error)))
            return
        if self._job.include_usage:
            await _send_line(send, sse.data({**self._head, "choices": [], "usage": self._summary.usage()}))
        await _send_line(send, "data: [DONE]\n\n")

    async def _send_part(self, send: Send, part: Part, journal: Journal) -> None:
        async for chunks in _chunks(self._service, part, journal, self._summary):
            if chunks is None:
                await _send_line(send, sse.WAITING)
            else:
                for chunk in chunks:
                    await _send_line(send, sse.data({**self._head, **chunk}))


def _fingerprint(config: WorkerConfig) -> str:
    """The same for two answers that were computed with the same model and settings."""
    said = json.dumps([config.model, config.ctx, config.slots, encode(config.options)], sort_keys=True)
    return f"fp_{hashlib.blake2b(said.encode('utf-8', 'replace'), digest_size=5).hexdigest()}"


async def _send_line(send: Send, line: str) -> None:
    await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
