"""Phase 8 as `infer` goes through it: workers that die, and what of an answer is reported. Phases 2 to 7 are scripted,
and so is each worker, byte by byte."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import ConfigError, NodeError, UsageError
from rbee.base.events import Event, Finished, Notice, Reasoning, Token, ToolCall
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.infer.infer import ReadyWorker, infer
from rbee.infer.request import InferRequest
from rbee.infer.session import InferSession
from rbee.inventory import Inventory, Node
from rbee.node.answers import Generated
from rbee.registry import Registry
from rbee.transport.connection import Connection, Stream
from rbee_remote.protocol import (
    CallDelta,
    ChatOptions,
    ErrorCode,
    LoadOptions,
    Message,
    RemoteError,
    TokenEvent,
    WorkerInfo,
    WorkerState,
    greeting,
    keeper_socket,
    parse_json,
)
from tests.doubles.connection import FakeConnection
from tests.unit.infer.test_stream import DONE, STARTED, A, refusal, sse

GPU1 = Node("gpu1", host="gpu1.example")
ASKED = InferRequest(messages=(Message("user", "Hi"),), model="smollm2:135m")
SECRET = "5" * 32
DIED = "the worker died before its first token"


class Worker:
    """Sends these events, or these bytes, and is gone: for good where they do not end an answer."""

    def __init__(self, *events: Generated, response: bytes | None = None) -> None:
        self.response = response or sse(1, *events)
        self.requests: list[dict[str, Any]] = []

    def listen(self, connection: FakeConnection, socket: str) -> None:
        async def serve(stream: Stream) -> None:
            await stream.write(greeting(SECRET))
            request = b""
            while not request.rstrip().endswith(b"}"):
                request += await stream.read(65536)
            self.requests.append(parse_json(request.partition(b"\r\n\r\n")[2]))
            connection.stop_listening(socket)
            await stream.write(self.response)

        connection.listen(socket, serve)


def info_of(number: int) -> WorkerInfo:
    return WorkerInfo(
        id=f"{number:016x}",
        model="smollm2:135m",
        state=WorkerState.IDLE,
        backend="cpu",
        device="cpu",
        socket=f"/w/{number}.sock",
        pid=1,
        start_ticks=1,
        boot_id="b",
        ctx=4096,
        slots=1,
        slots_free=1,
        keep_alive_s=60.0,
        created_at=0.0,
        secret=SECRET,
    )


class Bed:
    """events: what was reported. opened: how often the node was connected to."""

    def __init__(self, home: Path) -> None:
        self.events: list[Event] = []
        self.opened = 0
        self._home = home
        self._workers: Sequence[Worker] = ()
        self._given = 0

    @asynccontextmanager
    async def open_connection(self, *_: Any, **__: Any) -> AsyncIterator[Connection]:
        self.opened += 1
        async with FakeConnection() as connection:
            for number, worker in enumerate(self._workers):
                worker.listen(connection, keeper_socket(f"/w/{number}.sock"))
            yield connection

    async def ready_worker(self, session: InferSession, node: Node) -> ReadyWorker:
        on = await session.on(node)
        info = info_of(self._given)
        self._given += 1
        model: Any = None
        return ReadyWorker(on, model, info)

    async def ask(
        self,
        *workers: Worker,
        request: InferRequest = ASKED,
        node: Node = GPU1,
        before: Sequence[Node] = (),
        known: bool = False,
    ) -> Finished:
        """before: nodes that stand before it in the inventory. known: the registry has the first worker already."""
        self._workers, self._given = workers, 0

        def opened() -> Registry:
            return Registry.open(self._home / "workers.db")

        context = Context(
            Settings(home=self._home),
            Inventory({each.name: each for each in (*before, node)}),
            opened,
            "k" * 16,
            emit=self.events.append,
        )
        if known:
            self._given = 1
            with opened() as registry:
                registry.upsert_worker(node.name, info_of(0), hive_instance="h", payload="p")
        return await infer(request, context)

    def reported(self, *kinds: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kinds)]


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    bed = Bed(tmp_path)
    monkeypatch.setattr("rbee.node.session.open_connection", bed.open_connection)
    monkeypatch.setattr("rbee.infer.infer.ready_worker", bed.ready_worker)
    return bed


@pytest.mark.parametrize("known", [False, True], ids=["a new worker", "a warm worker"])
@pytest.mark.parametrize(
    "sent",
    [(STARTED,), (STARTED, TokenEvent("", 1))],
    ids=["no token", "half a character"],
)
async def test_a_worker_that_dies_before_its_first_token_costs_a_notice(
    bed: Bed, sent: tuple[Generated, ...], known: bool
) -> None:
    workers = Worker(*sent), Worker(STARTED, A, DONE)
    finished = await bed.ask(*workers, known=known)
    assert finished.worker == info_of(1).id
    assert bed.reported(Notice) == [Notice(f"{DIED}; asking gpu1 again")]
    assert [event.text for event in bed.reported(Token) if isinstance(event, Token) and event.text] == ["a"]
    first, second = (worker.requests[0]["request_id"] for worker in workers)
    assert first != second


@pytest.mark.parametrize("known", [False, True], ids=["new workers", "a warm one first"])
async def test_a_request_that_every_worker_dies_of_ends_with_an_error_that_says_so(bed: Bed, known: bool) -> None:
    workers = Worker(STARTED), Worker(STARTED), Worker(STARTED, A, DONE)
    with pytest.raises(NodeError, match=DIED) as caught:
        await bed.ask(*workers, known=known)
    assert (caught.value.code, caught.value.exit_status) == (ErrorCode.WORKER_CRASHED, 8)
    assert [len(worker.requests) for worker in workers] == [1, 1, 0]


async def test_an_engine_that_fails_before_the_first_token_is_a_dead_worker(bed: Bed) -> None:
    failure = RemoteError(ErrorCode.WORKER_CRASHED, "the engine failed: no GPU").encode()
    failed = sse(1, STARTED) + f"event: error\nid: 2\ndata: {json.dumps(failure)}\n\n".encode()
    await bed.ask(Worker(response=failed), Worker(STARTED, A, DONE))
    assert bed.reported(Notice) == [Notice(f"{DIED}; asking gpu1 again")]


@pytest.mark.parametrize(
    "shown",
    [A, TokenEvent("", 1, reasoning="hm"), TokenEvent("", 1, calls=(CallDelta(0, name="f"),))],
    ids=["text", "reasoning", "a call"],
)
async def test_an_answer_of_which_something_was_shown_is_not_begun_again(bed: Bed, shown: TokenEvent) -> None:
    second = Worker(STARTED, A, DONE)
    with pytest.raises(NodeError, match="died after 1 of 10 tokens") as caught:
        await bed.ask(Worker(STARTED, shown), second)
    assert caught.value.exit_status == 8
    assert second.requests == []


async def test_reasoning_text_and_calls_are_reported_apart(bed: Bed) -> None:
    call = [
        TokenEvent("", 3, calls=(CallDelta(0, "c1", "f", '{"a":'),)),
        TokenEvent("", 4, calls=(CallDelta(0, arguments="1}"), CallDelta(1, "c2", "g", "{"))),
        TokenEvent("", 5, calls=(CallDelta(1, arguments='"cut'),)),
    ]
    done = replace(DONE, finish_reason="length", usage=replace(DONE.usage, completion_tokens=5))
    finished = await bed.ask(Worker(STARTED, TokenEvent("", 1, reasoning="hm"), TokenEvent("ok", 2), *call, done))
    assert finished.finish_reason == "length"
    assert bed.reported(Reasoning, Token, ToolCall, Notice) == [
        Reasoning("hm", 1),
        Token("ok", 2),
        ToolCall("f", {"a": 1}, "c1"),
        Notice('the call of g is not whole: {"cut'),
    ]


async def test_the_answer_has_what_it_was_begun_with_and_warnings_come_once(bed: Bed) -> None:
    """A worker that dies first has shown neither."""
    messages = (*ASKED.messages, Message("assistant", "One"))
    request = replace(ASKED, messages=messages, chat=ChatOptions(continue_final=True))
    started = replace(STARTED, warnings=("no template: ChatML taken",))
    workers = Worker(started), Worker(started, A, DONE)
    await bed.ask(*workers, request=request)
    assert bed.reported(Notice, Token) == [
        Notice(f"{DIED}; asking gpu1 again"),
        Notice("no template: ChatML taken"),
        Token("One", 0),
        Token("a", 1),
    ]
    assert workers[1].requests[0]["messages"][-1]["content"] == "One"
    assert workers[1].requests[0]["chat"]["continue_final"] is True


async def test_an_answer_without_a_token_still_has_its_beginning(bed: Bed) -> None:
    messages = (*ASKED.messages, Message("assistant", "One"))
    request = replace(ASKED, messages=messages, chat=ChatOptions(continue_final=True))
    await bed.ask(Worker(STARTED, DONE), request=request)
    assert bed.reported(Token) == [Token("One", 0)]


# --- templates ----------------------------------------------------------------------------------------------------


async def test_the_nodes_template_is_used_unless_the_request_has_one(bed: Bed, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    node = replace(GPU1, template=file)
    for request, template in (
        (ASKED, "{{ messages }}"),
        (replace(ASKED, chat=ChatOptions(template="own")), "own"),
        (replace(ASKED, messages=(), prompt="raw"), ""),
    ):
        worker = Worker(STARTED, A, DONE)
        await bed.ask(worker, request=request, node=node)
        assert worker.requests[0]["chat"]["template"] == template


async def test_a_template_that_cannot_be_read_is_refused_before_the_node_is_connected_to(
    bed: Bed, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the template of gpu1: the file cannot be read: No such file") as caught:
        await bed.ask(node=replace(GPU1, template=tmp_path / "none.jinja"))
    assert caught.value.details["key"] == "template"
    assert bed.opened == 0


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RemoteError(ErrorCode.MODEL_INVALID, "the model's chat template fails"), "--raw"),
        (RemoteError(ErrorCode.USAGE, "it refuses the messages", details={"about": "chat_template"}), "--raw"),
        (RemoteError(ErrorCode.USAGE, "it fails", details={"field": "chat.template"}), "`template` in the inventory"),
        (RemoteError(ErrorCode.USAGE, "no", hint="x", details={"field": "chat.continue_final"}), "leave out --prefill"),
        (RemoteError(ErrorCode.USAGE, "too long", details={"field": "messages"}), ""),
        (RemoteError(ErrorCode.USAGE, "too long", hint="shorten it", details={"field": ["x"]}), "shorten it"),
    ],
)
async def test_what_helps_against_a_template_is_said_at_the_keyboard(bed: Bed, error: RemoteError, hint: str) -> None:
    with pytest.raises(NodeError) as caught:
        await bed.ask(Worker(response=refusal(400, error)))
    assert hint in caught.value.hint
    assert bool(caught.value.hint) == bool(hint)


async def test_a_model_that_only_embeds_is_refused_before_the_node_is_connected_to(bed: Bed) -> None:
    with pytest.raises(UsageError, match="bge-m3:567m only embeds texts") as caught:
        await bed.ask(request=replace(ASKED, model="bge-m3"))
    assert (caught.value.exit_status, bed.opened) == (2, 0)
    with pytest.raises(UsageError, match="bge-m3:567m only embeds texts"):
        await bed.ask(request=replace(ASKED, model=None), node=replace(GPU1, model="bge-m3"))
    assert bed.opened == 0


@pytest.mark.parametrize(
    ("other", "request_"),
    [
        (Node("box", host="box", model="bge-m3"), replace(ASKED, model=None)),
        (Node("box", host="box", load=LoadOptions(pooling="mean")), ASKED),
    ],
)
async def test_a_node_that_only_embeds_is_passed_over_where_another_can_chat(
    bed: Bed, other: Node, request_: InferRequest
) -> None:
    """Its own model does, or all that it loads."""
    finished = await bed.ask(Worker(STARTED, A, DONE), request=request_, before=[other])
    assert finished.node == GPU1.name
    with pytest.raises(UsageError, match="only embeds texts"):
        await bed.ask(request=replace(request_, node="box"), before=[other])
