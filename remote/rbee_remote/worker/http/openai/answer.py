"""From a job to its response: requests go in, their events come back as one JSON object or as a stream of chunks.

Rules
- All of a job's requests are in, or none.
- Whatever ends a response ends its requests: a client that goes away, an error in one of them, the worker's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, TrackedUsage, WorkerConfig, encode
from rbee_remote.serving import sse
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.system.together import all_or_none
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.openai.summary import Summary, Taken
from rbee_remote.worker.http.openai.tracking import NOTHING, Asked, State, Tracker, sent_of, state_of, usage_headers
from rbee_remote.worker.requests import sampling
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.tracking import refused
from rbee_remote.worker.service.service import Service

_log = logging.getLogger("rbee.worker")

T = TypeVar("T")
#: A stream's chunks, as what each has beside its head, and the token that gave them, as in `Choice.feed`.
Given = tuple[list[dict[str, Any]], "dict[str, Any] | None"]


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

    @property
    def one_prompt(self) -> bool:
        """Whether all of its parts have the same."""
        return sum(part.counts_prompt for part in self.parts) == 1


def part_ids(count: int) -> list[str]:
    """Ids of requests that belong together: alike but for the number at their end."""
    base = uuid.uuid4().hex[:-4]
    return [f"{base}{number:04x}" for number in range(count)]


async def respond(
    service: Service, job: Job, request: Request, asked: Asked = NOTHING, digests: tuple[str, ...] = ()
) -> Response:
    """Raises RemoteError where nothing has been sent yet. request: its body must have been read. digests: of its
    prompt, as `Service.submit` takes them."""
    tracker = None if asked is NOTHING else _tracker(service, job, asked)
    journals = await _submit(service, job, caller_of(request.headers), tracker, digests)

    def end() -> None:
        _end(service, job, journals)

    summary = Summary()
    state = tracker.state if tracker else _new_state(service, job)
    head = {
        "id": state.id,
        "created": state.created,
        "model": state.model,
        "system_fingerprint": state.fingerprint,
    }
    watcher = asyncio.create_task(when_gone(request.receive, end))
    try:
        if job.stream:
            await _settle(journals)
            return _Chunks(service, job, journals, summary, {**head, "object": job.chunk_kind}, end, tracker)
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
    headers = usage_headers(_tracked(summary)) if asked.told else None
    return Response(json.dumps(whole), media_type="application/json", headers=headers)


def _new_state(service: Service, job: Job, seeds: tuple[int, ...] = ()) -> State:
    config = service.config
    return State(job.id, int(time.time()), config.model, _fingerprint(config), seeds)


def _tracker(service: Service, job: Job, asked: Asked) -> Tracker | None:
    """None where nothing is to be told but the tokens of a whole answer. Raises RemoteError USAGE."""
    if asked.name:
        _log.info("request %s is %s%s", asked.name, job.id, ", resumed" if asked.resume else "")
    if asked.resume is None:
        if not (asked.told and job.stream):
            return None
        state = _new_state(service, job, tuple(sampling.resolve_seed(part.request.sampling) for part in job.parts))
    else:
        if not job.stream:
            raise refused("only a stream can be resumed")
        state = state_of(asked.resume, [part.request.sampling.seed for part in job.parts])
    return Tracker(state, sent_of(asked.resume, len(job.parts)), told=asked.told)


def _tracked(summary: Summary) -> TrackedUsage:
    usage = summary.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return TrackedUsage(usage["prompt_tokens"], cached, usage["completion_tokens"])


async def _submit(
    service: Service, job: Job, caller: Caller, tracker: Tracker | None, digests: tuple[str, ...]
) -> list[Journal]:
    trackings = tracker.trackings() if tracker else [None] * len(job.parts)
    journals: list[Journal] = []
    try:
        with service.keep_alive.held():
            for part, tracking in zip(job.parts, trackings, strict=True):
                journal = await service.submit(part.request, caller, tracking, digests if job.one_prompt else ())
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


async def when_gone(receive: Receive, cancel: Callable[[], object]) -> None:
    """Call `cancel` once the client has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()


async def _chunks(service: Service, part: Part, journal: Journal, summary: Summary) -> AsyncIterator[Given | None]:
    """What each of a request's events gives; None for a heartbeat. Raises the error that ends them."""
    choice, taken = part.choice, Taken()
    async for record in journal.follow(sse.HEARTBEAT_S):
        if record is None:
            yield None
        elif record.event == "started":
            summary.started(record.data, taken, counts_prompt=part.counts_prompt)
            warned = {"warnings": list(record.data["warnings"])} if record.data["warnings"] else {}
            yield [{"choices": [each], **warned} for each in choice.opening()], None
        elif record.event == "token":
            yield [{"choices": [each]} for each in choice.feed(record.data)], record.data
        elif record.event == "done":
            summary.done(record.data, taken)
            *others, last = choice.closing(_finish_reason(service, record.data["finish_reason"]))
            yield [*({"choices": [each]} for each in others), {"choices": [last], "timings": taken.encode()}], None
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
        tracker: Tracker | None,
    ) -> None:
        super().__init__(media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        del self.headers["content-length"]
        self._service = service
        self._job = job
        self._journals = journals
        self._summary = summary
        self._head = {**head, "usage": None} if job.include_usage else head
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
        try:
            await all_or_none(self._send_part(send, number, *part) for number, part in numbered)
        except RemoteError as error:
            line = sse.data(errors.body(error))
            await _send_text(send, self._tracker.error(line, _tracked(self._summary)) if self._tracker else line)
            return
        lines = ["data: [DONE]\n\n"]
        if self._job.include_usage:
            lines.insert(0, sse.data({**self._head, "choices": [], "usage": self._summary.usage()}))
        await _send_text(send, self._tracker.last(lines, _tracked(self._summary)) if self._tracker else "".join(lines))

    async def _send_part(self, send: Send, number: int, part: Part, journal: Journal) -> None:
        tracker = self._tracker
        async for given in _chunks(self._service, part, journal, self._summary):
            if given is None:
                await _send_text(send, sse.WAITING)
                continue
            chunks, token = given
            lines = [sse.data({**self._head, **chunk}) for chunk in chunks]
            text = "".join(lines) if tracker is None else tracker.text(number, lines, token)
            if text:
                await _send_text(send, text)


def _fingerprint(config: WorkerConfig) -> str:
    """The same for two answers that were computed with the same model and settings."""
    said = json.dumps([config.model, config.ctx, config.slots, encode(config.options)], sort_keys=True)
    return f"fp_{hashlib.blake2b(said.encode('utf-8', 'replace'), digest_size=5).hexdigest()}"


async def _send_text(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
