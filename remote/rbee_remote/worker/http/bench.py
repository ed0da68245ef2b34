"""How fast this worker computes, in llama-bench's terms: POST /v1/admin/bench.

Rules
- It has the engine for itself: refused with IN_USE while requests run, and requests that come wait for its end.
- A client that goes away ends it within a step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_remote.protocol import (
    BenchProgress,
    BenchRequest,
    BenchResult,
    BenchTest,
    ErrorCode,
    RemoteError,
    encode,
)
from rbee_remote.protocol.bench import MAX_REPETITIONS
from rbee_remote.serving import sse
from rbee_remote.serving.body import read_message
from rbee_remote.serving.sse import HEARTBEAT_S
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.system.cores import usable_cores
from rbee_remote.worker.engine.interface import Engine
from rbee_remote.worker.service.service import Service

_log = logging.getLogger("rbee.worker")


class _Test(NamedTuple):
    """name: as llama-bench has it. warm_up: the same two of the run before the first that counts."""

    name: str
    prompt_tokens: int
    generated_tokens: int
    warm_up: tuple[int, int]


def bench_endpoint(service: Service) -> Callable[[Request], Awaitable[Response]]:
    """The route's handler: BenchRequest -> SSE `progress`…, `done` or `error`."""

    async def bench(request: Request) -> Response:
        message = await read_message(request, BenchRequest)
        check(message, service.config.ctx)
        running = _Running(service, message, caller_of(request.headers))
        await running.begun()
        return _Events(running)

    return bench


def check(request: BenchRequest, ctx: int) -> None:
    """Raises RemoteError USAGE, naming the field."""
    most = max(request.prompt_tokens, request.generated_tokens)
    if min(request.prompt_tokens, request.generated_tokens) < 0 or most == 0:
        raise RemoteError(ErrorCode.USAGE, "prompt_tokens and generated_tokens must not be negative, nor both 0")
    if most > ctx:
        raise RemoteError(
            ErrorCode.USAGE,
            f"{most} tokens do not fit into the worker's context of {ctx}",
            hint="load the model with a larger --ctx",
        )
    if not 1 <= request.repetitions <= MAX_REPETITIONS:
        raise RemoteError(
            ErrorCode.USAGE, f"repetitions must be from 1 to {MAX_REPETITIONS}, got {request.repetitions}"
        )


def run(engine: Engine, request: BenchRequest, report: Callable[[BenchProgress], None]) -> tuple[BenchTest, ...]:
    """On the engine's thread. Raises RemoteError REQUEST_CANCELED when the engine was interrupted."""
    tests = list(_tests(request))
    total, done = len(tests) * (1 + request.repetitions), 0
    results = []
    for test in tests:
        seconds = []
        for counts in (test.warm_up, *[(test.prompt_tokens, test.generated_tokens)] * request.repetitions):
            report(BenchProgress(test.name, done, total))
            took = engine.bench(*counts)
            if took is None:
                raise RemoteError(ErrorCode.REQUEST_CANCELED, "the benchmark was canceled")
            seconds.append(took)
            done += 1
        results.append(BenchTest(test.name, test.prompt_tokens + test.generated_tokens, tuple(seconds[1:])))
    return tuple(results)


def _tests(request: BenchRequest) -> Iterator[_Test]:
    """A prompt warms up with a whole one, generation with one token, as llama-bench has it."""
    prompt, generated = request.prompt_tokens, request.generated_tokens
    if prompt:
        yield _Test(f"pp{prompt}", prompt, 0, (prompt, 0))
    if generated:
        yield _Test(f"tg{generated}", 0, generated, (0, 1))


class _Running:
    """One benchmark: a job on the engine's thread, and its news on the event loop's."""

    def __init__(self, service: Service, request: BenchRequest, caller: Caller) -> None:
        self._threads = service.config.options.threads or usable_cores()
        self._news: asyncio.Queue[BenchProgress | None] = asyncio.Queue()
        self._first: BenchProgress | None = None
        loop = asyncio.get_running_loop()

        def report(progress: BenchProgress) -> None:
            loop.call_soon_threadsafe(self._news.put_nowait, progress)

        self._job = asyncio.create_task(service.run_alone(lambda engine: run(engine, request, report), caller))
        self._job.add_done_callback(lambda _: self._news.put_nowait(None))

    async def begun(self) -> None:
        """Return once the engine is at it. Raises the RemoteError that keeps it from that."""
        self._first = await self._news.get()
        if self._first is None:
            await self._job

    async def lines(self) -> AsyncIterator[str]:
        progress = self._first
        while progress is not None:
            yield sse.event("progress", encode(progress))
            while True:
                with anyio.move_on_after(HEARTBEAT_S):
                    progress = await self._news.get()
                    break
                yield sse.WAITING
        yield self._end()

    def cancel(self) -> None:
        """The engine stops within a step, if it is still at it."""
        self._job.cancel()

    def _end(self) -> str:
        try:
            return sse.event("done", encode(BenchResult(self._job.result(), self._threads)))
        except RemoteError as error:
            return sse.event("error", error.encode())
        except Exception as error:
            _log.exception("the benchmark failed")
            hint = "see the worker's log"
            failure = RemoteError(ErrorCode.INTERNAL, f"the benchmark failed: {error}", hint=hint)
            return sse.event("error", failure.encode())


class _Events(sse.EventStream):
    """The events of a benchmark, which ends with the response."""

    def __init__(self, running: _Running) -> None:
        super().__init__(running.lines())
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()
