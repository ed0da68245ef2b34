"""One request on its way through its workers, until one of them has given the answer, or none can.

Rules
- Method, path and body go to the worker as they came, but for what an alias adds; what the worker answers goes to the
  client as it comes, but for tracking comments. Nothing here knows one endpoint from another.
- Whatever ends a request ends its exchange with the worker, and gives its place back.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from rbee.base.errors import NodeError, RbeeError
from rbee.gateway.base.interfaces import RawResponse
from rbee.gateway.base.views import Wanted, WorkerView
from rbee.gateway.requests import asked, headers
from rbee.gateway.requests.answer import Answer
from rbee.gateway.requests.asked import Asked
from rbee.gateway.requests.defaults import with_defaults
from rbee.gateway.requests.errors import Refusal, RefusedStatusError, form_of, in_form, recorded, refusal_in, refusal_of
from rbee.gateway.requests.exchange import Exchange
from rbee.gateway.requests.parts import Parts
from rbee.gateway.requests.patience import WAITING, company, said_of
from rbee.gateway.requests.presence import has_worker, is_there, until_back, when_known
from rbee.gateway.requests.resuming import Course, Failure, GaveUpError, Kind, NoOtherError, ending, failure_of, gone
from rbee.gateway.requests.tracking import LostCountError, Progress
from rbee.gateway.routing.able import able
from rbee_remote.protocol import HEADER_BACKGROUND, ErrorCode, endpoints
from rbee_remote.protocol.prompt_digest import prompt_digests

#: Bytes of a refusal that are read.
_MOST_REFUSAL = 2**20
#: A worker with one of these says that it cannot, or not now; any other 4xx or 5xx is about the request.
_ELSEWHERE = frozenset({410, 500, 502, 503})


class Passage:
    """One request on its way."""

    def __init__(self, parts: Parts, exchange: Exchange, answer: Answer, told: Asked) -> None:
        self._parts = parts
        self._exchange = exchange
        self._answer = answer
        self._asked = told
        self._body: dict[str, Any] = told.body
        self._content = told.content
        self._target = ""
        self._headers: dict[str, str] = {}
        self._progress = Progress()
        self._course = Course()
        self._worker: WorkerView | None = None
        self._version = 0

    def address(self, request: Request) -> None:
        """Where it goes on a worker, and with which headers."""
        query = request.scope["query_string"]
        target = request.scope["raw_path"] + (b"?" + query if query else b"")
        self._target = target.decode("ascii")
        exchange = self._exchange
        self._headers = headers.to_worker(request.headers, exchange.request_id, exchange.traceparent)
        if exchange.client.background:
            self._headers[HEADER_BACKGROUND] = "1"

    async def prepare(self, deadline: float) -> Wanted:
        """What it needs of a worker. Raises RbeeError for a model that the client cannot have, RefusedStatusError 404
        for what no worker serves, where none runs that could say so itself, and 400 for what the model cannot do."""
        resolve = functools.partial(self._parts.names.resolve, self._asked.model, self._exchange.client)
        resolved = await when_known(self._parts.fleet, self._parts.settings.acquaint_s, resolve)
        path = self._exchange.path
        if not endpoints.is_served(path) and not has_worker(self._parts.fleet, resolved.targets):
            raise RefusedStatusError(Refusal(404, ErrorCode.USAGE.value, f"no worker serves {path:.200}"))
        targets, why = able(resolved.targets, self._parts.fleet.nodes, path)
        if not targets:
            raise RefusedStatusError(Refusal(400, ErrorCode.USAGE.value, why, param="model"))
        self._body = with_defaults(self._asked.body, resolved.alias, self._exchange.path)
        self._content = await asked.written(self._asked, self._body)
        digests = await asked.beside(len(self._content), lambda: prompt_digests(self._body))
        self._exchange.model = targets[0].model
        client = self._exchange.client
        return Wanted(
            targets,
            digests,
            client.priority,
            deadline,
            client=client.key,
            background=client.background,
            fetches=client.fetches,
        )

    async def run(self, wanted: Wanted) -> None:
        """From worker to worker, until one of them has given the answer, or none can. Raises RbeeError."""
        first: Failure | None = None
        self._exchange.queued_at = time.monotonic()
        try:
            while True:
                try:
                    if (failure := await self._on_one(wanted, first)) is None:
                        return
                    wanted, first = self._elsewhere(wanted, failure), failure
                    self._exchange.failovers += 1
                except NoOtherError as error:
                    wanted = await self._back_again(wanted, error)
        except GaveUpError as error:
            await self._give_up(error.failure)
        finally:
            self._exchange.usage = self._exchange.usage or self._progress.usage

    async def _on_one(self, wanted: Wanted, before: Failure | None) -> Failure | None:
        """On the worker that the dispatcher gives, whose place is kept while its connection is made again.

        before: why there is another one. None where the answer is complete. Raises RbeeError, GaveUpError.
        """
        try:
            ticket = self._parts.dispatcher.enter(wanted)
        except RbeeError as error:
            raise self._no_other(error, before) from error
        try:
            try:
                async with self._company(lambda: said_of(ticket.waiting)):
                    worker = await ticket.worker()
            except RbeeError as error:
                raise self._no_other(error, before) from error
            self._note_worker(worker)
            failure = await self._ask(worker)
            while failure is not None and self._course.stays(failure) and await self._can_go_on_at(worker):
                failure = await self._ask(worker, again=True)
            if failure is not None and failure.kind is not Kind.REFUSED:
                self._parts.fleet.failed(worker.key)
            return failure
        finally:
            ticket.close()

    def _no_other(self, error: RbeeError, before: Failure | None) -> Exception:
        return error if before is None else NoOtherError(ending(before, error, sent=self._answer.gave))

    async def _back_again(self, wanted: Wanted, error: NoOtherError) -> Wanted:
        """Nobody else can go on: the worker that had the answer last, once its connection is made again. Raises
        GaveUpError."""
        worker = self._worker
        may_be = error.failure.kind in (Kind.BROKE, Kind.SILENT)
        if worker is None or not may_be or not self._answer.gave or self._course.is_over:
            raise GaveUpError(error.failure)
        if not await self._is_back(worker, self._parts.settings.resume_s):
            raise GaveUpError(error.failure)
        limit = time.monotonic() + self._parts.settings.resume_s
        return replace(wanted, avoid=wanted.avoid - {worker.key}, deadline=limit)

    def _note_worker(self, worker: WorkerView) -> None:
        self._exchange.worker, self._exchange.model = worker.key, worker.model
        self._exchange.worker_at = self._exchange.worker_at or time.monotonic()
        self._worker = worker

    async def _can_go_on_at(self, worker: WorkerView) -> bool:
        """Whether the same worker may go on; its connection has a moment to be made again, where others could not
        simply begin anew."""
        if not self._answer.gave:
            return is_there(self._parts.fleet, worker.key) and not self._course.has_stayed
        if not self._progress.can_resume:
            return False
        after = self._version if self._course.has_stayed else None
        return await self._is_back(worker, self._parts.settings.back_s, after=after)

    async def _is_back(self, worker: WorkerView, seconds: float, *, after: int | None = None) -> bool:
        async with self._company(lambda: WAITING):
            return await until_back(self._parts.fleet, worker.key, seconds, after=after)

    def _elsewhere(self, wanted: Wanted, failure: Failure) -> Wanted:
        """What the next worker has to be. Raises GaveUpError."""
        assert self._worker is not None
        sent = self._answer.gave
        try:
            wanted = self._course.elsewhere(wanted, self._worker, failure, sent=sent, resumes=self._progress.can_resume)
        except GaveUpError as error:
            why = None
            if sent and self._progress.can_resume and not self._worker.sha256:
                why = NodeError(ErrorCode.WORKER_GONE, f"no SHA-256 is known of {self._worker.model}")
            raise GaveUpError(ending(failure, why, sent=sent)) from error
        if not sent:
            return wanted
        limit = time.monotonic() + self._parts.settings.resume_s
        return replace(wanted, deadline=limit)  # whatever came before, the answer has got on since

    async def _ask(self, worker: WorkerView, *, again: bool = False) -> Failure | None:
        """One worker, once; None where the answer is complete."""
        self._version = self._parts.fleet.version
        try:
            failure = await self._exchange_with(worker, again=again)
        except RbeeError as error:
            failure = failure_of(error)
        except LostCountError as error:
            failure = gone(f"the worker sent an answer that rbee does not understand: {error}")
        if failure is not None:
            self._course.note(failure, self._progress.told)
        return failure

    async def _exchange_with(self, worker: WorkerView, *, again: bool) -> Failure | None:
        content = await self._continued()
        http = self._parts.fleet.worker(worker.key)
        limit = asyncio.timeout(self._parts.settings.head_s if again and self._asked.streams else None)
        async with AsyncExitStack() as stack:
            try:
                async with limit, self._company(lambda: WAITING):
                    sent = http.send("POST", self._target, self._headers, content)
                    response = await stack.enter_async_context(sent)
            except TimeoutError:
                if not limit.expired():
                    raise
                return gone("the worker did not answer again")
            return await self._take(response)

    async def _continued(self) -> bytes:
        """The body, with what the client has of the answer; begins anew where it has nothing."""
        if not self._answer.gave:
            self._progress = Progress()
            return self._content
        body = {**self._body, **self._progress.resume()}
        return await asked.written(self._asked, body)

    def _company(self, say: Callable[[], str]) -> AbstractAsyncContextManager[None]:
        settings = self._parts.settings
        return company(
            self._answer,
            say if self._asked.streams else None,
            patience_s=settings.patience_s,
            comment_s=settings.comment_s,
        )

    async def _take(self, response: RawResponse) -> Failure | None:
        if response.status >= 400:
            return await self._refused(response)
        if response.status >= 300 and not self._answer.gave:  # it says where else something is, and is well
            await self._answer.refuse(
                Refusal(404, ErrorCode.USAGE.value, f"no worker serves {self._exchange.path:.200}")
            )
            return None
        if not 200 <= response.status < 300:
            return gone(f"the worker answered with status {response.status}")
        if headers.is_stream(response.headers):
            return await self._stream(response)
        if self._answer.gave:
            return gone("the worker did not go on with a stream")
        return await self._whole(response)

    async def _stream(self, response: RawResponse) -> Failure | None:
        progress, answer = self._progress, self._answer
        progress.begin_stream()
        await answer.begin_stream()
        async for piece in response.chunks():
            data = progress.feed(piece)
            if data:
                has_content = progress.has_tokens or not progress.can_resume
                await (answer.write(data, has_content=has_content) if progress.lines else answer.pass_on(data))
            if progress.failure:
                return gone(f"the worker ended the answer with {progress.failure}")
        if rest := progress.finish():
            await answer.write(rest)
        self._exchange.finish = recorded(200, progress.error) if progress.error else ""
        await answer.end()
        return None

    async def _whole(self, response: RawResponse) -> Failure | None:
        """An answer that is no stream: another worker can give it until it is whole, or too large to be held."""
        answer, head, content = self._answer, headers.to_client(response.headers), bytearray()
        async for piece in response.chunks():
            content += piece
            if len(content) > self._parts.settings.held:
                if not answer.began:
                    await answer.begin_whole(response.status, head)
                elif not answer.gave:
                    return gone("the worker sent a large answer that is no stream to a client that hears one")
                await answer.write(bytes(content))
                content.clear()
        self._exchange.usage = headers.usage(response.headers)
        if not answer.gave:
            await answer.whole(response.status, head, bytes(content))
            return None
        await answer.write(bytes(content))
        await answer.end()
        return None

    async def _refused(self, response: RawResponse) -> Failure | None:
        said = bytearray()
        async for piece in response.chunks():
            said += piece
            if len(said) > _MOST_REFUSAL:
                return gone("the worker refused the request with an answer without an end")
        refusal = refusal_in(response.status, bytes(said), response.headers.get("retry-after"))
        ready = bytes(said) if in_form(bytes(said), form_of(self._exchange.path)) else b""
        if response.status in _ELSEWHERE or self._answer.gave:
            error = NodeError(ErrorCode.WORKER_GONE, f"the worker refused the request: {refusal.message}")
            kind = Kind.REFUSED if response.status != 410 else Kind.GONE
            return Failure(kind, error, refusal, ready)
        await self._answer.refuse(refusal, ready)
        return None

    async def _give_up(self, failure: Failure) -> None:
        refusal = failure.refusal or refusal_of(failure.error)
        if failure.refusal and refusal.status == 410:  # of a worker, which the caller knows nothing of
            refusal = Refusal(503, refusal.code, refusal.message, headers={"Retry-After": "1"})
        await self._answer.refuse(refusal, failure.said, self._progress.lines)
