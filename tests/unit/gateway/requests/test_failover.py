"""A request whose workers fail: whatever breaks where, the client has each line once, or hears that it is broken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.base.errors import ConnectError, NodeError
from rbee.gateway.base.views import NodeState, WorkerKey
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.parts import AppSettings
from rbee.gateway.requests.resuming import Course, failure_of, gone
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import RESUME_FIELD, ErrorCode, encode
from tests.doubles.gateway import (
    MODEL,
    SHA,
    USAGE,
    Heard,
    Reply,
    ScriptedWorker,
    Setting,
    ask,
    chat,
    chat_script,
    plain,
    rendered,
    resuming,
    setting,
)
from tests.patience import PATIENCE_S

STEPS = chat_script(["one ", "two ", "three ", "four ", "five ", "six "])
WHOLE = plain(STEPS)
LENGTH = len(rendered(STEPS))
LOST = ConnectError(ErrorCode.CONNECTION_LOST, "the connection to a was lost")
GONE = NodeError(ErrorCode.WORKER_GONE, "nobody listens there")


async def asked(world: Setting, body: dict[str, Any] | None = None, **options: Any) -> Heard:
    heard = await ask(make_app(world.parts), body or chat(), **options)
    assert world.dispatcher.open == 0
    assert world.gate.open_requests == 0
    assert all(worker.open == 0 for worker in world.fleet.workers.values() if isinstance(worker, ScriptedWorker))
    assert len(world.recorder.requests) == 1
    return heard


@given(st.lists(st.integers(0, LENGTH - 1), max_size=5), st.lists(st.integers(1, 300), min_size=1, max_size=9))
@settings(max_examples=150)
def test_each_line_once_whatever_breaks_where(breaks: list[int], cuts: list[int]) -> None:
    """Each worker of the fleet breaks at a byte of what it sends, until one does not. A byte that is not reached, since
    little was missing, is no break."""
    body = resuming(STEPS)
    replies = [Reply(body, breaks_at=at, cuts=cuts, error=SilenceError("POST", 10)) for at in breaks]
    workers: dict[str, Any] = {
        f"n{at}": ScriptedWorker(reply) for at, reply in enumerate([*replies, Reply(body, cuts=cuts)])
    }
    world = setting(**workers)
    heard = asyncio.run(asked(world))
    (ended,) = world.recorder.requests
    if ended.finish:
        assert len(breaks) >= 4  # in a row, without a line
        assert not heard.is_complete
        assert WHOLE.startswith(heard.body.split(b'data: {"error"')[0])
    else:
        assert heard.is_complete
        assert heard.body == WHOLE
        assert ended.usage == USAGE
        assert ended.failovers <= len(breaks)


@given(st.integers(0, LENGTH - 1), st.integers(1, 50))
def test_a_connection_that_broke_is_asked_at_the_same_worker_first(at: int, cut: int) -> None:
    body = resuming(STEPS)
    worker, other = ScriptedWorker(Reply(body, breaks_at=at, cuts=[cut]), Reply(body)), ScriptedWorker(Reply(body))
    world = setting(a=worker, b=other)
    heard = asyncio.run(asked(world))
    assert (heard.body, heard.is_complete) == (WHOLE, True)
    assert len(worker.requests) == 2
    assert other.requests == []
    assert len(world.dispatcher.wanted) == 1
    assert world.recorder.requests[0].failovers == 0


async def test_a_worker_that_is_gone_is_asked_once_more_and_then_another_with_its_file() -> None:
    body = resuming(STEPS)
    dead = ScriptedWorker(Reply(body, breaks_at=1500), Reply(b"", before=GONE))
    alive = ScriptedWorker(Reply(body))
    world = setting(a=dead, b=alive)
    heard = await asked(world)
    assert (heard.body, heard.is_complete) == (WHOLE, True)
    second = world.dispatcher.wanted[1]
    assert (second.sha256, second.avoid) == (SHA, frozenset({WorkerKey("a", "w")}))
    assert alive.requests[0][2][RESUME_FIELD]["state"] == {"seed": 7}
    assert {name: value for name, value in alive.requests[0][2].items() if name != RESUME_FIELD} == chat()
    assert world.fleet.failures == [WorkerKey("a", "w")]
    (ended,) = world.recorder.requests
    assert (ended.failovers, ended.worker, ended.finish, ended.status) == (1, WorkerKey("b", "w"), "", 200)


@pytest.mark.parametrize("error", [HungUpError("POST"), LOST])
async def test_a_node_that_stays_down_is_not_asked_again(error: Exception) -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=error))
    world = setting(a=dead, b=ScriptedWorker(Reply(resuming(STEPS))), settings=AppSettings(back_s=0.01))
    world.fleet.set_state("a", NodeState.DOWN)
    assert (await asked(world)).body == WHOLE
    assert len(dead.requests) == 1


async def test_a_connection_that_is_made_again_goes_on_at_the_same_worker() -> None:
    """The first try comes before the fleet has noticed, the second when it has a connection again."""
    worker = ScriptedWorker(
        Reply(resuming(STEPS), breaks_at=1500, error=LOST), Reply(b"", before=LOST), Reply(resuming(STEPS))
    )
    world = setting(a=worker, b=ScriptedWorker(Reply(resuming(STEPS))))
    running = asyncio.create_task(asked(world))
    while len(worker.requests) < 2:
        await asyncio.sleep(0)
    world.fleet.set_state("a", NodeState.CONNECTING)
    await asyncio.sleep(0)
    world.fleet.set_state("a", NodeState.UP)
    assert (await running).body == WHOLE
    assert (len(worker.requests), len(world.dispatcher.wanted)) == (3, 1)


async def test_a_worker_that_is_known_to_be_gone_is_not_waited_for() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500))
    world = setting(a=dead, b=ScriptedWorker(Reply(resuming(STEPS))), settings=AppSettings(back_s=10 * PATIENCE_S))
    world.fleet.gone.add("a")
    heard = await asyncio.wait_for(asked(world), PATIENCE_S)
    assert (heard.body, len(dead.requests)) == (WHOLE, 1)


@pytest.mark.parametrize("is_long", [False, True])
async def test_a_connection_that_flaps_ends_no_answer_at_once(is_long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is lost before a further token, and in vain when that has gone on for long."""
    if is_long:
        monkeypatch.setattr("rbee.gateway.requests.resuming.FAILOVER_STILL_S", 0.0)
    body = resuming(STEPS)
    lost = [Reply(b"", before=LOST)] * 9
    worker = ScriptedWorker(Reply(body, breaks_at=1500, error=LOST), *lost, Reply(body))
    heard = await asked(setting(a=worker, settings=AppSettings(back_s=0.001)))
    assert heard.is_complete is not is_long
    assert len(worker.requests) == (4 if is_long else 11)
    assert (heard.body == WHOLE) is not is_long


def test_tokens_without_a_line_are_progress_too() -> None:
    now = 0.0
    course = Course(lambda: now)
    for told in range(7):
        assert not course.is_over
        course.note(gone("killed"), told)
    assert not course.is_over
    course.note(gone("killed"), 7)
    assert course.is_over, "eight workers died of it"
    course = Course(lambda: now)
    for _ in range(9):
        course.note(failure_of(LOST), 3)
    assert not course.is_over
    now = 30.0
    assert course.is_over


async def test_an_answer_that_has_gone_on_for_long_has_time_for_another_worker() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=GONE))
    world = setting(a=dead, b=ScriptedWorker(Reply(resuming(STEPS))), settings=AppSettings(wait_s=1.0))
    assert (await asked(world)).body == WHOLE
    first, second = (wanted.deadline for wanted in world.dispatcher.wanted)
    assert first is not None
    assert second is not None
    assert second > first + 100


@pytest.mark.parametrize(
    ("error", "avoided"), [(LOST, [set(), set(), set()]), (SilenceError("POST", 10), [set(), {"a"}, set()])]
)
async def test_the_only_worker_is_waited_for_where_its_connection_broke(
    error: Exception, avoided: list[set[str]]
) -> None:
    worker = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=error), Reply(resuming(STEPS)))
    world = setting(a=worker, settings=AppSettings(back_s=0.01))
    world.fleet.set_state("a", NodeState.DOWN)
    running = asyncio.create_task(asked(world))
    while len(world.dispatcher.wanted) < 2:
        await asyncio.sleep(0.001)
    world.fleet.set_state("a", NodeState.UP)
    assert (await running).body == WHOLE
    assert [{key.node for key in wanted.avoid} for wanted in world.dispatcher.wanted] == avoided


async def test_the_only_worker_does_not_come_back() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=LOST))
    world = setting(a=dead, settings=AppSettings(back_s=0.01, resume_s=0.01))
    world.fleet.set_state("a", NodeState.DOWN)
    heard = await asked(world)
    assert not heard.is_complete
    assert b"the answer is not complete" in heard.body


async def test_nothing_sent_yet_begins_again_elsewhere_with_any_file() -> None:
    refused = Reply(b"", before=GONE)
    world = setting(a=ScriptedWorker(refused), b=ScriptedWorker(Reply(resuming(STEPS))))
    assert (await asked(world)).body == WHOLE
    assert world.dispatcher.wanted[1].sha256 == ""
    assert RESUME_FIELD not in world.fleet.workers["b"].requests[0][2]  # type: ignore[attr-defined]


JSON = {"content-type": "application/json"}


@given(st.integers(0, 25))
def test_a_whole_answer_that_was_sent_in_half_comes_from_elsewhere(at: int) -> None:
    content = b'{"choices": [], "usage": {}}'
    told = {**JSON, "x-rbee-usage": json.dumps(encode(USAGE)), "set-cookie": "no"}
    half = Reply(content, headers=JSON, breaks_at=at, error=SilenceError("POST", 10), cuts=[3])
    world = setting(a=ScriptedWorker(half), b=ScriptedWorker(Reply(content, headers=told)))
    heard = asyncio.run(asked(world, chat(stream=False)))
    assert (heard.status, heard.body, heard.is_complete) == (200, content, True)
    assert heard.headers["content-length"] == str(len(content))
    assert heard.headers.keys() == {"content-type", "content-length", "x-request-id"}
    assert world.recorder.requests[0].usage == USAGE


async def test_a_large_whole_answer_is_passed_on_and_broken_off_where_it_breaks() -> None:
    content = b"x" * 1000
    world = setting(a=ScriptedWorker(Reply(content, headers=JSON, cuts=[7])), settings=AppSettings(held=100))
    heard = await asked(world, chat(stream=False))
    assert (heard.body, heard.is_complete) == (content, True)
    half = Reply(content, headers=JSON, cuts=[7], breaks_at=500)
    world = setting(a=ScriptedWorker(half), settings=AppSettings(held=100))
    heard = await asked(world, chat(stream=False))
    assert not heard.is_complete
    assert world.recorder.requests[0].finish == "WORKER_GONE"


@pytest.mark.parametrize("status", [400, 404, 413, 422, 504])
async def test_a_refusal_of_the_request_is_the_answer(status: int) -> None:
    content = json.dumps({"error": {"message": "no", "type": "x", "param": None, "code": None}}).encode()
    other = ScriptedWorker(Reply(resuming(STEPS)))
    world = setting(a=ScriptedWorker(Reply(content, status=status, headers=JSON)), b=other)
    heard = await asked(world)
    assert (heard.status, heard.body) == (status, content)
    assert other.requests == []


@pytest.mark.parametrize("status", [410, 500, 503])
async def test_a_refusal_of_the_worker_is_tried_elsewhere(status: int) -> None:
    refused = Reply(b'{"error": {"message": "dying"}}', status=status, headers=JSON)
    world = setting(a=ScriptedWorker(refused), b=ScriptedWorker(Reply(resuming(STEPS))))
    assert (await asked(world)).body == WHOLE
    assert world.dispatcher.wanted[1].avoid == {WorkerKey("a", "w")}


async def test_where_all_refuse_the_last_refusal_is_the_answer() -> None:
    content = b'{"error": {"message": "full", "type": "server_error", "param": null, "code": "ALL_SLOTS_BUSY"}}'
    busy = Reply(content, status=503, headers={**JSON, "retry-after": "9"})
    world = setting(a=ScriptedWorker(busy), b=ScriptedWorker(busy))
    heard = await asked(world)
    assert (heard.status, heard.body, heard.headers["retry-after"]) == (503, content, "9")
    assert world.recorder.requests[0].finish == "ALL_SLOTS_BUSY"
    assert world.fleet.failures == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_no_other_worker_with_the_file_is_said_in_the_stream_which_has_no_end(path: str) -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=GONE))
    world = setting(a=dead)
    heard = await asked(world, path=path)
    assert not heard.is_complete
    assert b"[DONE]" not in heard.body
    *_, event, empty = heard.body.decode().split("\n\n")
    assert empty == ""
    named, told = event.split("data: ")
    assert named == ("" if "chat" in path else "event: error\n")
    error = json.loads(told)
    message = error["message"] if "responses" in path else error["error"]["message"]
    assert "the answer is not complete" in message
    assert world.recorder.requests[0].finish == "WORKER_GONE"


async def test_what_cannot_be_resumed_is_not_begun_again() -> None:
    untracked = Reply(WHOLE, breaks_at=len(WHOLE) // 2)
    other = ScriptedWorker(Reply(WHOLE))
    world = setting(a=ScriptedWorker(untracked), b=other)
    heard = await asked(world)
    assert not heard.is_complete
    assert other.requests == []
    assert heard.body.endswith(b"\n\n")
    assert b"not complete" in heard.body


async def test_the_error_of_a_worker_that_tells_no_tokens_is_recorded() -> None:
    error = b'data: {"error": {"message": "broken", "code": "INTERNAL"}}\n\n'
    untracked = Reply(WHOLE[: WHOLE.index(b"\n\n") + 2] + error)
    world = setting(a=ScriptedWorker(untracked), b=ScriptedWorker(Reply(WHOLE)))
    heard = await asked(world)
    assert heard.body.endswith(error)
    assert world.recorder.requests[0].finish == "INTERNAL"


async def test_a_worker_of_which_no_file_is_known_is_replaced_by_none() -> None:
    world = setting(
        a=ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=SilenceError("POST", 10))),
        b=ScriptedWorker(Reply(resuming(STEPS))),
    )
    world.fleet.sha256 = ""
    heard = await asked(world)
    assert not heard.is_complete
    assert f"no SHA-256 is known of {MODEL}".encode() in heard.body


async def test_a_request_that_kills_workers_is_given_up() -> None:
    workers: dict[str, Any] = {f"n{at}": ScriptedWorker(Reply(b"", before=GONE)) for at in range(9)}
    world = setting(**workers)
    heard = await asked(world)
    assert heard.status == 503
    assert sum(len(worker.requests) for worker in workers.values()) == 4


async def test_a_worker_that_says_it_ends_is_replaced() -> None:
    ending = b'data: {"error": {"message": "ending", "type": "server_error", "param": null, "code": "WORKER_GONE"}}\n\n'
    half = rendered(STEPS[:4])
    world = setting(a=ScriptedWorker(Reply(half + ending)), b=ScriptedWorker(Reply(resuming(STEPS))))
    heard = await asked(world)
    assert (heard.body, heard.is_complete) == (WHOLE, True)


async def test_a_worker_that_refuses_to_go_on_is_no_answer_for_the_client() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=1500, error=SilenceError("POST", 10)))
    refuses = ScriptedWorker(Reply(b'{"error": {"message": "no"}}', status=400, headers=JSON))
    world = setting(a=dead, b=refuses, c=ScriptedWorker(Reply(resuming(STEPS))))
    heard = await asked(world)
    assert (heard.body, heard.is_complete) == (WHOLE, True)
    assert world.recorder.requests[0].failovers == 2


async def test_several_choices_go_on_each_from_where_it_was() -> None:
    steps = chat_script(["one ", "two ", "three ", "four "], choices=3)
    broken = Reply(resuming(steps), breaks_at=3001, error=SilenceError("POST", 10))
    world = setting(a=ScriptedWorker(broken), b=ScriptedWorker(Reply(resuming(steps))))
    heard = await asked(world, chat(n=3))
    assert heard.is_complete
    assert sorted(heard.body.split(b"\n\n")) == sorted(plain(steps).split(b"\n\n"))
    assert MODEL in heard.body.decode()
