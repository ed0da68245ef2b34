"""From a job to its response: requests go in, their events come back as one JSON object or as a stream.

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

import anyio
from starlette.requests import Request
from starlette.responses import Response

from rbee_remote.protocol import RemoteError, WorkerConfig, encode
from rbee_remote.serving import sse
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.worker.http.answers.form import Job
from rbee_remote.worker.http.answers.places import renamed
from rbee_remote.worker.http.answers.stream import Stream, pieces
from rbee_remote.worker.http.answers.summary import Summary
from rbee_remote.worker.http.answers.tracking import NOTHING, Asked, State, Tracker, sent_of, state_of, usage_headers
from rbee_remote.worker.http.answers.waiting import when_gone
from rbee_remote.worker.requests import sampling
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.tracking import Tracking, refused
from rbee_remote.worker.service.service import Service

_log = logging.getLogger("rbee.worker")


async def respond(
    service: Service, job: Job, request: Request, asked: Asked = NOTHING, digests: tuple[str, ...] = ()
) -> Response:
    """Raises RemoteError where nothing has been sent yet. request: its body must have been read. digests: of its
    prompt, as `Service.submit` takes them."""
    tracker = None if asked is NOTHING else _tracker(service, job, asked)
    try:
        journals = await _submit(service, job, caller_of(request.headers), tracker, digests)
    except RemoteError as error:
        raise renamed(error, job.places) from error

    def end() -> None:
        _end(service, job, journals)

    summary = Summary(job.warnings)
    job.form.begin(tracker.state if tracker else _new_state(service, job))
    watcher = asyncio.create_task(when_gone(request.receive, end))
    try:
        if job.stream:
            await _settle(journals)
            return Stream(service, job, journals, summary, end, tracker)
        for part, journal in zip(job.parts, journals, strict=True):
            async for _ in pieces(service, job, part, journal, summary):
                pass
    except BaseException:
        end()
        raise
    finally:
        watcher.cancel()
    end()
    headers = usage_headers(summary.tokens) if asked.told else None
    content = json.dumps(job.form.whole(job.parts, summary))
    return Response(content, media_type="application/json", headers=headers)


def _new_state(service: Service, job: Job, seeds: tuple[int, ...] = ()) -> State:
    config = service.config
    return State(job.id, int(time.time()), config.model, _fingerprint(config), seeds)


def _fingerprint(config: WorkerConfig) -> str:
    """The same for two answers that were computed with the same model and settings."""
    said = json.dumps([config.model, config.ctx, config.slots, encode(config.options)], sort_keys=True)
    return f"fp_{hashlib.blake2b(said.encode('utf-8', 'replace'), digest_size=5).hexdigest()}"


def _tracker(service: Service, job: Job, asked: Asked) -> Tracker | None:
    """None where nothing is to be told but the tokens of a whole answer. Raises RemoteError USAGE."""
    if asked.name:
        _log.info("request %s is %s%s", asked.name, job.id, ", resumed" if asked.resume else "")
    if asked.resume is None:
        if not (asked.told and job.stream):
            return None
        state = _new_state(service, job, tuple(sampling.resolve_seed(part.request.sampling) for part in job.parts))
    else:
        if not (job.stream and job.can_resume):
            raise refused("only a stream can be resumed" if not job.stream else "this answer cannot be resumed")
        state = state_of(asked.resume, [part.request.sampling.seed for part in job.parts])
    return Tracker(state, sent_of(asked.resume, len(job.parts)), told=asked.told, has_state=job.can_resume)


async def _submit(
    service: Service, job: Job, caller: Caller, tracker: Tracker | None, digests: tuple[str, ...]
) -> list[Journal]:
    trackings = tracker.trackings() if tracker else [_tracking(job, number) for number in range(len(job.parts))]
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


def _tracking(job: Job, number: int) -> Tracking | None:
    """Of an answer that nobody goes on with; for those that tell their tokens themselves."""
    if not job.tells_tokens:
        return None
    return Tracking(f"{job.id}/{number}", sampling.resolve_seed(job.parts[number].request.sampling))


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
