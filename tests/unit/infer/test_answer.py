"""Phase 8 against a real worker whose engine is scripted: nothing goes on for an answer that nobody reads, and nothing
waits longer than it may."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base.deadline import Deadline
from rbee.base.errors import NodeError
from rbee.base.events import Event, Retry, Token
from rbee.infer.answer import Endpoint, UnansweredError, answer
from rbee.infer.partial import PartialAnswer
from rbee.infer.worker_status import HiveReport
from rbee.node.hive_client import WorkerClient
from rbee.render import OutputClosed
from rbee.transport.local import LocalConnection
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import ErrorCode, GenerateRequest, TokenEvent
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Worker, running


async def nothing_known() -> HiveReport:
    return HiveReport(reached=False)


@contextlib.asynccontextmanager
async def endpoint_of(engine: ScriptedEngine, **config: Any) -> AsyncIterator[tuple[Endpoint, PartialAnswer, Worker]]:
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder, tempfile.TemporaryDirectory() as saved:
        async with (
            running(Path(folder), loads(engine), ctx=8192, **config) as worker,
            ReconnectingConnection(
                "local", lambda *_: LocalConnection(keeper_id="keeper"), print_nothing
            ) as connection,
        ):
            client = WorkerClient(connection, str(worker.socket), worker_id="a" * 16, keeper_id="keeper")
            yield (
                Endpoint(client, connection, explain=nothing_known),
                PartialAnswer(Path(saved) / "answer.txt"),
                worker,
            )


def print_nothing(_: Event) -> None:
    return


def ask(prompt: str = "abc") -> GenerateRequest:
    return GenerateRequest(uuid.uuid4().hex, prompt=prompt)


async def test_a_reader_who_hangs_up_ends_the_generation() -> None:
    engine = ScriptedEngine(lambda _: b"x" * 4000, before_step=lambda _: time.sleep(0.005))

    def hang_up(event: Event) -> None:
        if isinstance(event, Token):
            raise OutputClosed

    async with endpoint_of(engine) as (endpoint, partial, worker):
        with pytest.raises(OutputClosed):
            await answer(endpoint, ask(), partial, emit=hang_up)
        async with asyncio.timeout(PATIENCE_S):
            await worker.until(lambda status: status["state"] == "idle")
    assert engine.steps < 4000


async def test_a_local_worker_that_dies_is_not_waited_for() -> None:
    heard: list[Event] = []

    def explode(step: int) -> None:
        if step == 10:
            raise RuntimeError("the GPU fell off the bus")

    async with endpoint_of(ScriptedEngine(lambda _: b"x" * 100, before_step=explode)) as (endpoint, partial, worker):
        with pytest.raises(NodeError) as caught:
            await answer(endpoint, ask(), partial, emit=heard.append)
        assert await worker.task == 1
        assert caught.value.code is ErrorCode.WORKER_CRASHED
        assert partial.path.read_text() == "x" * sum(isinstance(event, Token) for event in heard) != ""


async def test_a_worker_that_dies_before_its_first_token_has_answered_nothing() -> None:
    def explode(step: int) -> None:
        raise RuntimeError(f"the GPU fell off the bus in step {step}")

    async with endpoint_of(ScriptedEngine(lambda _: b"x" * 100, before_step=explode)) as (endpoint, partial, worker):
        with pytest.raises(UnansweredError, match="died before its first token") as caught:
            await answer(endpoint, ask(), partial, emit=print_nothing)
        assert await worker.task == 1
    assert (caught.value.code, caught.value.exit_status) == (ErrorCode.WORKER_CRASHED, 8)
    assert "fell off the bus" in caught.value.details["reason"]
    assert not partial.path.exists()


async def test_a_busy_worker_is_asked_again_with_what_is_left_of_the_time() -> None:
    """The deadline is absolute: the second try tells the worker less than the first, and the wait for a third is cut
    short."""
    passes = threading.Event()

    def hold(_: int) -> None:
        assert passes.wait(PATIENCE_S)

    engine = ScriptedEngine(lambda _: b"x", before_step=hold)
    reported: list[Event] = []
    async with endpoint_of(engine, queue=0) as (endpoint, partial, worker):
        holding = asyncio.create_task(answer(endpoint, ask("first"), partial, emit=print_nothing))
        await worker.until(lambda status: status["slots_free"] == 0)
        hurried = replace(endpoint, deadline=Deadline.after(2.0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(hurried.deadline.left()):
                await answer(hurried, ask("second"), partial, emit=reported.append)
        passes.set()
        assert (await holding).text == "x"
    assert [event.attempt for event in reported if isinstance(event, Retry)] == [1, 2]


async def test_the_worker_ends_what_the_keepers_deadline_ends() -> None:
    engine = ScriptedEngine(lambda _: b"x" * 4000, before_step=lambda _: time.sleep(0.005))
    async with endpoint_of(engine) as (endpoint, partial, _):
        result = await answer(replace(endpoint, deadline=Deadline.after(2.0)), ask(), partial, emit=print_nothing)
    assert result.finish_reason == "deadline"
    assert 0 < len(result.text) < 4000


def test_a_disk_that_is_full_here_is_told_with_how_far_the_answer_came() -> None:
    partial = PartialAnswer(Path("/dev/full"), max_tokens=20)
    partial.add(TokenEvent("bee", 12))
    assert partial.save() == {"generated": "12 of 20 tokens", "not saved": "[Errno 28] No space left on device"}
