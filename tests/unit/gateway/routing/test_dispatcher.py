"""Who waits, who is served and who is refused, over a scripted fleet in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.retries import LOAD_PAUSE_S
from rbee.gateway.base.views import NodeState, Target, Waiting, Wanted, WorkerKey, WorkerView
from rbee.gateway.routing.dispatcher import FleetDispatcher, QueuedTicket, WhoWaits
from rbee.gateway.routing.loads import ABANDON_S
from rbee_remote.protocol import ErrorCode, WorkerState
from tests.doubles import virtual_time
from tests.doubles.fleet import ScriptedFleet, ScriptedNode

A, B = "smollm2:135m", "qwen2.5:0.5b"


def want(model: str = A, *nodes: str, **fields: Any) -> Wanted:
    return Wanted((Target(model, nodes or ("a", "b", "c")),), **fields)


def node(name: str, **fields: Any) -> ScriptedNode:
    return ScriptedNode(name, fields.pop("models", (A, B)), **fields)


def now() -> float:
    return asyncio.get_running_loop().time()


Story = Callable[[FleetDispatcher, ScriptedFleet], Coroutine[Any, Any, None]]


def play(story: Story, *nodes: ScriptedNode, **options: Any) -> ScriptedFleet:
    """Tell a story over these nodes; at its end every request that began has ended, and no task is left."""

    async def main() -> ScriptedFleet:
        fleet = ScriptedFleet(nodes)
        async with FleetDispatcher(fleet, **options) as dispatcher:
            await story(dispatcher, fleet)
            assert dispatcher.queued == {}
        return fleet

    fleet = virtual_time.run(main())
    assert all(begun == ended for begun, ended in fleet.counts.values())
    return fleet


async def served(ticket: QueuedTicket, seconds: float) -> WorkerView:
    """A request that takes this long in its slot."""
    try:
        worker = await ticket.worker()
        await asyncio.sleep(seconds)
        return worker
    finally:
        ticket.close()


async def error_of(work: Awaitable[object]) -> RbeeError:
    with pytest.raises(RbeeError) as caught:
        await work
    return caught.value


def test_a_request_has_its_worker_at_once_where_one_is_free() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        worker = fleet.add("a", A)
        began = now()
        ticket = dispatcher.enter(want())
        assert (await ticket.worker()).key == worker.key
        assert (now(), worker.in_flight) == (began, 1)
        ticket.close()
        ticket.close()
        assert worker.in_flight == 0

    assert play(story, node("a")).starts == []


def test_a_cold_model_is_started_once_for_all_who_want_it() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        tickets = [dispatcher.enter(want()) for _ in range(6)]
        await asyncio.sleep(1)
        waiting = tickets[0].waiting
        assert (waiting.place, waiting.loading) == (1, 0.0)
        assert 3 <= waiting.about_s <= 3.5
        workers = await asyncio.gather(*(served(ticket, 1) for ticket in tickets))
        assert {worker.key.node for worker in workers} == {"a"}

    assert play(story, node("a"), node("b")).starts == [("a", A)]


def test_a_queue_that_takes_longer_than_a_load_gets_a_worker_on_another_node() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A)
        workers = await asyncio.gather(*(served(dispatcher.enter(want()), 2) for _ in range(20)))
        assert {worker.key.node for worker in workers} == {"a", "b", "c"}

    assert play(story, node("a"), node("b"), node("c")).starts == [("b", A), ("c", A)]


def test_priority_comes_before_arrival_and_arrival_before_the_rest() -> None:
    order: list[str] = []

    async def one(dispatcher: FleetDispatcher, name: str, priority: int) -> None:
        ticket = dispatcher.enter(want(priority=priority))
        await ticket.worker()
        order.append(name)
        await asyncio.sleep(1)
        ticket.close()

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A, slots=1)
        async with asyncio.TaskGroup() as group:
            for name, priority in (("first", 0), ("low", -1), ("x", 0), ("y", 0), ("high", 1)):
                group.create_task(one(dispatcher, name, priority))

    play(story, node("a"))
    assert order == ["first", "high", "x", "y", "low"]


def test_low_priority_is_served_in_the_end() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A, slots=1)
        low = asyncio.create_task(served(dispatcher.enter(want(priority=-1)), 1))
        stream = [asyncio.create_task(served(dispatcher.enter(want()), 1)) for _ in range(2)]
        began = now()
        low = asyncio.create_task(served(dispatcher.enter(want(priority=-1)), 1))
        while not low.done():
            await asyncio.sleep(0.5)
            stream.append(asyncio.create_task(served(dispatcher.enter(want()), 1)))
            assert now() - began < 100
        await asyncio.gather(*stream)

    play(story, node("a"), most_waiting=1000)


def test_who_waits_hears_its_place_and_about_how_long() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A)
        running = [asyncio.create_task(served(dispatcher.enter(want()), 2)) for _ in range(2)]
        waiting = [dispatcher.enter(want()) for _ in range(3)]
        assert [ticket.waiting for ticket in waiting] == [Waiting(1, None, 1), Waiting(2, None, 2), Waiting(3, None, 3)]
        assert dispatcher.queued == {A: 3}
        waiting[0].close()
        assert [ticket.waiting.place for ticket in waiting[1:]] == [1, 2]
        await asyncio.gather(*running, *(served(ticket, 1) for ticket in waiting[1:]))

    play(story, node("a"))


def test_who_waits_is_told_by_model_and_key() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A)
        running = [asyncio.create_task(served(dispatcher.enter(want()), 20)) for _ in range(2)]
        await asyncio.sleep(0)
        assert dispatcher.who_waits() == []
        first = dispatcher.enter(want(client="alice"))
        await asyncio.sleep(5)
        others = [dispatcher.enter(want(client=client)) for client in ("bob", "alice", "")]
        assert dispatcher.who_waits() == [
            WhoWaits(A, "alice", 2, 5.0), WhoWaits(A, "bob", 1, 0.0), WhoWaits(A, "", 1, 0.0),
        ]  # fmt: skip
        await asyncio.gather(*running, *(served(ticket, 1) for ticket in (first, *others)))

    play(story, node("a"))


def test_a_queue_has_an_end_and_says_when_to_come_again() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A)
        tickets = [dispatcher.enter(want()) for _ in range(7)]
        with pytest.raises(NodeError) as caught:
            dispatcher.enter(want())
        assert (caught.value.code, caught.value.details) == (ErrorCode.ALL_SLOTS_BUSY, {"retry_after_s": 6})
        fleet.add("a", B)
        tickets.append(dispatcher.enter(want(B)))
        await asyncio.gather(*(served(ticket, 1) for ticket in tickets))

    play(story, node("a"), most_waiting=5)


def test_nobody_waits_beyond_the_deadline() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        fleet.add("a", A, slots=1)
        running = asyncio.create_task(served(dispatcher.enter(want()), 9))
        late = dispatcher.enter(want(deadline=now() + 2))
        began = now()
        error = await error_of(late.worker())
        assert error.code is ErrorCode.ALL_SLOTS_BUSY
        assert error.details["retry_after_s"] >= 1
        assert 2 <= now() - began < 2.1
        late.close()
        with pytest.raises(NodeError):
            dispatcher.enter(want(deadline=now()))
        await running

    play(story, node("a"))


def test_who_left_costs_nothing() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        worker = fleet.add("a", A, slots=1)
        first, gone, last = (dispatcher.enter(want()) for _ in range(3))
        waiter = asyncio.create_task(gone.worker())
        await asyncio.sleep(0)
        waiter.cancel()
        gone.close()
        await first.worker()
        first.close()
        await asyncio.wait_for(last.worker(), 0.1)
        last.close()
        unseen = dispatcher.enter(want())  # it has its worker, and its client never asks
        assert worker.in_flight == 1
        unseen.close()
        assert worker.in_flight == 0

    play(story, node("a"))


def test_a_worker_can_be_asked_for_again_after_a_pause() -> None:
    """Whoever streams comments waits for a few seconds at a time."""

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        ticket = dispatcher.enter(want())
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ticket.worker(), 1)
        await served(ticket, 1)

    play(story, node("a"))


def test_a_load_that_fails_is_tried_on_the_next_node_and_not_again_at_once() -> None:
    broken = NodeError(ErrorCode.MODEL_INVALID, "the file is broken")

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        worker = await served(dispatcher.enter(want()), 1)
        assert worker.key.node == "b"
        fleet.end(worker.key)
        assert (await served(dispatcher.enter(want()), 1)).key.node == "b"
        fleet.end(fleet.nodes[1].workers[0].key)
        await asyncio.sleep(LOAD_PAUSE_S)
        assert (await served(dispatcher.enter(want()), 1)).key.node == "a"

    fleet = play(story, node("a", fails=[broken]), node("b"))
    assert fleet.starts == [("a", A), ("b", A), ("b", A), ("a", A)]


def test_what_a_load_failed_with_reaches_all_who_waited_and_who_comes_soon_after() -> None:
    broken = NodeError(ErrorCode.RAM_EXHAUSTED, "too little memory", hint="a smaller model")

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        tickets = [dispatcher.enter(want()) for _ in range(3)]
        errors = [await error_of(ticket.worker()) for ticket in tickets]
        for error in errors:
            assert (error.code, error.message, error.hint) == (broken.code, broken.message, broken.hint)
        assert len({id(error) for error in errors}) == 3
        for ticket in tickets:
            ticket.close()
        with pytest.raises(NodeError, match="too little memory"):
            dispatcher.enter(want())

    assert play(story, node("a", fails=[broken])).starts == [("a", A)]


@pytest.mark.parametrize(
    "error",
    [
        NodeError(ErrorCode.WORKER_CRASHED, "it ended unexpectedly", details={"signal": "SIGKILL"}),
        NodeError(ErrorCode.WORKER_GONE, "its hive was gone"),
        ConnectError(ErrorCode.CONNECTION_LOST, "the connection was lost"),
    ],
)
def test_a_load_that_failed_by_an_accident_is_begun_again_for_who_waits_but_not_for_ever(error: RbeeError) -> None:
    async def waits(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        assert (await served(dispatcher.enter(want()), 1)).key.node == "a"

    assert play(waits, node("a", fails=[error, error])).starts == [("a", A)] * 3

    async def in_vain(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        assert (await error_of(served(dispatcher.enter(want()), 1))).code is error.code

    assert play(in_vain, node("a", fails=[error] * 9)).starts == [("a", A)] * 3


def test_a_load_that_crashed_by_itself_is_not_begun_again_for_who_waits() -> None:
    error = NodeError(ErrorCode.WORKER_CRASHED, "it ended unexpectedly", details={"signal": "SIGSEGV"})

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        assert (await error_of(served(dispatcher.enter(want()), 1))).code is error.code

    assert play(story, node("a", fails=[error])).starts == [("a", A)]


def test_a_fallback_serves_where_a_load_fails() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        both = Wanted((Target(A, ("a",)), Target(B, ("a", "b"))))
        assert (await served(dispatcher.enter(both), 1)).model == B

    play(story, node("a", fails=[NodeError(ErrorCode.VRAM_EXHAUSTED, "too large")]))


def test_a_bug_in_a_load_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        ticket = dispatcher.enter(want())
        assert (await error_of(ticket.worker())).code is ErrorCode.INTERNAL
        ticket.close()

    play(story, node("a", fails=[RuntimeError("a bug")]))
    assert "a bug" in caplog.text


def test_unreachable_nodes_are_waited_for_only_while_they_may_come() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        ticket = dispatcher.enter(want())
        await asyncio.sleep(3)
        fleet.scripted["a"].state = NodeState.DOWN
        fleet.changed()
        assert isinstance(await error_of(ticket.worker()), ConnectError)
        ticket.close()
        with pytest.raises(ConnectError):
            dispatcher.enter(want())
        fleet.scripted["a"].state = NodeState.UP
        fleet.changed()
        await served(dispatcher.enter(want()), 1)

    play(story, node("a", state=NodeState.CONNECTING))


def test_a_load_that_nobody_waits_for_any_more_is_given_up() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        dispatcher.enter(want()).close()
        await asyncio.sleep(ABANDON_S - 1)
        assert fleet.scripted["a"].workers
        dispatcher.enter(want()).close()  # a client that timed out, and asked again
        await asyncio.sleep(ABANDON_S - 1)
        assert fleet.scripted["a"].workers
        await asyncio.sleep(2)
        assert not fleet.scripted["a"].workers

    assert play(story, node("a", load_s=600)).starts == [("a", A)]


def test_a_load_goes_on_for_who_needs_the_model_for_something_else() -> None:
    """Who asked for it has left."""

    async def story(dispatcher: FleetDispatcher, _: ScriptedFleet) -> None:
        chat, embed = (Wanted((Target(A, ("a",), ability=each),)) for each in ("chat", "embeddings"))
        chats, embeds = dispatcher.enter(chat), dispatcher.enter(embed)
        await asyncio.sleep(1)
        chats.close()
        await served(embeds, 1)

    assert play(story, node("a", models=(), load_s=ABANDON_S * 3)).starts == [("a", A)]


def test_two_models_that_do_not_fit_together_take_turns() -> None:
    """A request for either every half second, for two minutes: swapping with each of them would be 240 loads."""
    waits: list[float] = []

    async def one(dispatcher: FleetDispatcher, model: str) -> None:
        began, ticket = now(), dispatcher.enter(want(model))
        await ticket.worker()
        waits.append(now() - began)
        await asyncio.sleep(0.2)
        ticket.close()

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(240):
                group.create_task(one(dispatcher, (A, B)[number % 2]))
                await asyncio.sleep(0.5)

    for fields in ({"max_workers": 1}, {"places": 1}):
        waits.clear()
        fleet = play(story, node("a", load_s=2, **fields), most_waiting=1000)
        assert len(waits) == 240
        assert 4 <= len(fleet.starts) <= 30, "each has its turns"
        assert max(waits) <= 30, "a turn of the other, and a load"


def test_a_worker_that_is_gone_as_soon_as_it_was_started_is_a_failure() -> None:
    class Vanishing(ScriptedFleet):
        async def start_worker(self, node: str, target: Target) -> WorkerKey:
            key = await super().start_worker(node, target)
            self.end(key)
            return key

    async def main() -> None:
        fleet = Vanishing([node("a")])
        async with FleetDispatcher(fleet) as dispatcher:
            ticket = dispatcher.enter(want())
            error = await error_of(ticket.worker())
            assert error.code is ErrorCode.WORKER_GONE
            ticket.close()
            assert len(fleet.starts) == 1

    virtual_time.run(main())


def test_whoever_waits_at_the_end_is_refused_and_so_is_who_comes_then() -> None:
    async def main() -> None:
        fleet = ScriptedFleet([node("a")])
        dispatcher = FleetDispatcher(fleet)
        async with dispatcher:
            ticket = dispatcher.enter(want())
        assert (await error_of(ticket.worker())).code is ErrorCode.ALL_SLOTS_BUSY
        ticket.close()
        with pytest.raises(NodeError, match="ending"):
            dispatcher.enter(want())
        assert fleet.scripted["a"].workers == []

    virtual_time.run(main())


def test_a_bug_in_placing_fails_requests_instead_of_leaving_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        monkeypatch.setattr("rbee.gateway.routing.dispatcher.decide", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            dispatcher.enter(want())

    play(story, node("a"))
    assert "placing requests failed" in caplog.text


def test_a_slot_that_others_take_is_not_ours() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        worker = fleet.add("a", A, slots=2, others=1)
        first, second = dispatcher.enter(want()), dispatcher.enter(want())
        await first.worker()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.worker(), 1)
        worker.others = 0
        fleet.changed()
        await second.worker()
        assert worker.state is WorkerState.IDLE
        first.close()
        second.close()

    play(story, node("a"))


def test_a_model_that_only_embeds_is_refused_to_who_chats_and_loaded_for_who_embeds() -> None:
    async def story(dispatcher: FleetDispatcher, fleet: ScriptedFleet) -> None:
        chat, embed = (Wanted((Target(A, ("a", "b"), ability=each),)) for each in ("chat", "embeddings"))
        chats, embeds = dispatcher.enter(chat), dispatcher.enter(embed)
        error = await error_of(chats.worker())
        assert error.code is ErrorCode.USAGE
        chats.close()
        with pytest.raises(NodeError, match="only embeds"):
            dispatcher.enter(chat)
        await served(embeds, 1)

    why = NodeError(ErrorCode.USAGE, f"{A} only embeds texts", details={"able": ["embeddings"]})
    assert play(story, node("a", models=(), fails=[why]), node("b", models=())).starts == [("a", A)] * 2
