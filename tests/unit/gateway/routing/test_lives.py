"""Random lives of a gateway's queue: requests, clients that leave, workers that die, loads that fail, nodes that come
and go, in virtual time. Whatever happens, each request is placed or refused, begins once and ends once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.base.errors import NodeError, RbeeError
from rbee.gateway.base.views import NodeState, Target, Wanted
from rbee.gateway.routing.dispatcher import FleetDispatcher
from rbee_remote.protocol import ErrorCode
from tests.doubles import virtual_time
from tests.doubles.fleet import ScriptedFleet, ScriptedNode

MODELS = ("smollm2:135m", "qwen2.5:0.5b", "llama3.2:1b")
NODES = ("a", "b", "c")
#: Seconds in which whatever can be decided has been: turns of the other models at 5 s a load, and what is in flight.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Request:
    """leaves_s: when its client leaves, whatever has become of it; None for never. deadline_s: None for none."""

    model: str
    fallback: str | None
    nodes: tuple[str, ...]
    seconds: float
    priority: int
    leaves_s: float | None
    deadline_s: float | None


requests = st.builds(
    Request,
    model=st.sampled_from(MODELS),
    fallback=st.sampled_from((None, None, *MODELS)),
    nodes=st.sets(st.sampled_from(NODES), min_size=1).map(lambda names: tuple(sorted(names))),
    seconds=st.sampled_from((0.0, 0.1, 1.0, 8.0)),
    priority=st.sampled_from((0, 0, 0, 1, -1)),
    leaves_s=st.sampled_from((None, None, None, 0.0, 0.3, 5.0)),
    deadline_s=st.sampled_from((None, None, None, 0.0, 2.0, 20.0)),
)
accidents = st.one_of(
    st.tuples(st.just("kill"), st.sampled_from(NODES)),
    st.tuples(st.just("down"), st.sampled_from(NODES)),
    st.tuples(st.just("up"), st.sampled_from(NODES)),
    st.tuples(st.just("neighbour"), st.sampled_from(NODES)),
)
events = st.tuples(st.sampled_from((0.0, 0.0, 0.1, 0.7, 4.0)), st.one_of(requests, requests, requests, accidents))
errors = st.builds(
    NodeError,
    st.sampled_from((ErrorCode.MODEL_INVALID, ErrorCode.RAM_EXHAUSTED, ErrorCode.NODE_BUSY, ErrorCode.LOADING_TIMEOUT)),
    st.just("no"),
)


@st.composite
def nodes_of(draw: st.DrawFn) -> list[ScriptedNode]:
    return [
        ScriptedNode(
            name,
            tuple(sorted(draw(st.sets(st.sampled_from(MODELS), min_size=1)))),
            slots=draw(st.integers(1, 3)),
            load_s=draw(st.sampled_from((0.0, 1.0, 5.0))),
            places=draw(st.integers(1, 3)),
            max_workers=draw(st.sampled_from((None, 1, 2))),
            state=draw(st.sampled_from((NodeState.UP, NodeState.UP, NodeState.DOWN, NodeState.CONNECTING))),
            fails=draw(st.lists(errors, max_size=2)),
        )
        for name in NODES
    ]


async def one(dispatcher: FleetDispatcher, request: Request) -> str:
    """How it ended."""
    loop = asyncio.get_running_loop()
    names = (request.model, request.fallback) if request.fallback else (request.model,)
    deadline = None if request.deadline_s is None else loop.time() + request.deadline_s
    wanted = Wanted(tuple(Target(name, request.nodes) for name in names), priority=request.priority, deadline=deadline)
    try:
        ticket = dispatcher.enter(wanted)
    except RbeeError:
        return "refused"
    try:
        async with asyncio.timeout(request.leaves_s):
            async with asyncio.timeout(PATIENCE_S if deadline is None else request.deadline_s + 0.5):  # type: ignore[operator]
                worker = await ticket.worker()
            assert worker.model in names
            assert worker.key.node in request.nodes
            await asyncio.sleep(request.seconds)
            return "served"
    except RbeeError:
        return "refused"
    except TimeoutError:
        assert request.leaves_s is not None, "it was neither placed nor refused"
        return "left"
    finally:
        ticket.close()


def happen(fleet: ScriptedFleet, what: str, name: str) -> None:
    node = fleet.scripted[name]
    match what:
        case "kill" if node.workers:
            fleet.end(node.workers[0].key)
        case "neighbour":
            for worker in node.workers:
                worker.others = 0 if worker.others else min(1, worker.slots - worker.in_flight)
        case "down" | "up":
            node.state = NodeState.UP if what == "up" else NodeState.DOWN
    fleet.changed()


async def live(nodes: list[ScriptedNode], story: list[tuple[float, Any]]) -> list[str]:
    fleet = ScriptedFleet(nodes)
    tasks = []
    async with FleetDispatcher(fleet) as dispatcher:
        for pause_s, event in story:
            await asyncio.sleep(pause_s)
            if isinstance(event, Request):
                tasks.append(asyncio.create_task(one(dispatcher, event)))
            else:
                happen(fleet, *event)
        for node in nodes:  # what was connecting is known in the end, and neighbours leave
            node.state = NodeState.DOWN if node.state is NodeState.CONNECTING else node.state
            for worker in node.workers:
                worker.others = 0
        fleet.changed()
        ends = await asyncio.gather(*tasks)
        assert dispatcher.queued == {}
    assert all(begun == ended for begun, ended in fleet.counts.values())
    served = sum(begun for begun, _ in fleet.counts.values())
    assert served >= ends.count("served")
    return ends


@settings(max_examples=100, deadline=None)
@given(nodes_of(), st.lists(events, max_size=30))
def test_each_request_of_a_life_is_placed_or_refused_once(
    nodes: list[ScriptedNode], story: list[tuple[float, Any]]
) -> None:
    virtual_time.run(live(nodes, story))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=25), st.integers(1, 3))
def test_those_who_want_the_same_are_served_in_the_order_they_came(priorities: list[int], slots: int) -> None:
    async def main() -> list[tuple[int, int]]:
        fleet = ScriptedFleet([ScriptedNode("a", MODELS, slots=slots)])
        order: list[tuple[int, int]] = []

        async def request(dispatcher: FleetDispatcher, priority: int, number: int) -> None:
            ticket = dispatcher.enter(Wanted((Target(MODELS[0], ("a",)),), priority=priority))
            await ticket.worker()
            order.append((-priority, number))
            await asyncio.sleep(1)
            ticket.close()

        async with FleetDispatcher(fleet) as dispatcher, asyncio.TaskGroup() as group:
            for number, priority in enumerate(priorities):
                group.create_task(request(dispatcher, priority, number))
        return order

    order = virtual_time.run(main())
    assert order == sorted(order)
    assert len(order) == len(priorities)
