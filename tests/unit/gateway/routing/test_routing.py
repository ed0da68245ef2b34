"""Which worker, which node, or who waits: tables, the known traps of routers, and what holds for all situations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import ConnectError, NodeError
from rbee.gateway.base.views import NodeState, NodeView, Target, Wanted, WorkerKey, WorkerView
from rbee.gateway.routing.routing import DOUBT_S, UNKNOWN_S, best, decide
from rbee.gateway.routing.situation import (
    Decision,
    Load,
    Refuse,
    Rivals,
    Seen,
    Send,
    Situation,
    Start,
    Wait,
    room,
    serves,
)
from rbee_remote.protocol import ErrorCode, LoadOptions, WorkerOptions, WorkerState
from tests.unit.gateway.views import MODEL, OTHER, SHA, model_info, node_view, worker_view

ALL = ("a", "b", "c", "d")
ASKED = Target(MODEL, ALL)
PROMPT = tuple(f"{number:016x}" for number in range(10))
BUSY: dict[str, Any] = {
    "state": WorkerState.BUSY,
    "slots": 2,
    "slots_free": 0,
    "in_flight": 2,
    "typical_s": 2.0,
    "idle_s": None,
}


def wanted(**fields: Any) -> Wanted:
    return Wanted((ASKED,), **fields)


def asked(*nodes: NodeView, want: Wanted | None = None, waiting: int = 1, waited_s: float = 0, **now: Any) -> Decision:
    return decide(Situation(nodes, **now), want or wanted(), waiting=waiting, waited_s=waited_s)


def shown(decision: Decision) -> str:
    match decision:
        case Send(worker):
            return f"send {worker.key.node}"
        case Start(node, target):
            return f"start {node} {target.model}"
        case Wait(loading=None):
            return "wait"
        case Wait():
            return "wait for a load"
        case Refuse(error):
            return f"refuse {error.code.value}"


def on(node: str, *workers: WorkerView, **fields: Any) -> NodeView:
    return node_view(node, workers, **fields)


# --- where there is a worker -----------------------------------------------------------------------------------------


def holding(node: str, blocks: int, **fields: Any) -> WorkerView:
    return worker_view(node, held=(PROMPT[:blocks],), **fields)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        pytest.param([holding("a", 0), holding("b", 10)], "b", id="who holds the prompt takes it"),
        pytest.param([holding("a", 4), holding("b", 9)], "b", id="who holds more of it takes it"),
        pytest.param([holding("a", 10, in_flight=2), holding("b", 0)], "a", id="a chat stays under moderate load"),
        pytest.param([holding("a", 10, in_flight=4), holding("b", 0)], "b", id="nobody waits for a full worker"),
        pytest.param(
            [holding("a", 2, in_flight=2), holding("b", 0)], "b", id="a short common start is not worth a queue"
        ),
        pytest.param([holding("a", 10, in_flight=3), holding("b", 9)], "b", id="of two that hold it the emptier one"),
        pytest.param(
            [worker_view("a", held=((*PROMPT[:5], "x"),), in_flight=1), worker_view("b")],
            "b",
            id="nor is one that is no more than shared",
        ),
        pytest.param(
            [worker_view("a", held=((*PROMPT[:5], "x"),)), worker_view("b")], "a", id="but among equals that decides"
        ),
        pytest.param([worker_view("a", in_flight=1), worker_view("b")], "b", id="no match: the emptiest"),
        pytest.param(
            [worker_view("a", held=(("x",),)), worker_view("b")], "b", id="no match: the one with empty memory"
        ),
        pytest.param([worker_view("a"), worker_view("b")], "a", id="all alike: the inventory's order"),
        pytest.param(
            [holding("a", 10, state=WorkerState.LOADING), worker_view("b")], "b", id="one that loads takes nothing"
        ),
        pytest.param([worker_view("a", slots_free=0), worker_view("b")], "b", id="what others ask of it counts"),
        pytest.param([worker_view("a", queued=4), worker_view("b")], "b", id="so does what is queued there"),
    ],
)
def test_the_best_worker_with_a_free_slot_takes_a_request(workers: list[WorkerView], expected: str) -> None:
    nodes = [on(worker.key.node, worker) for worker in workers]
    assert shown(asked(*nodes, want=wanted(digests=PROMPT))) == f"send {expected}"


def test_among_equals_the_one_that_was_unused_for_longest_takes_it() -> None:
    a, b = worker_view("a"), worker_view("b")
    seen = {a.key: Seen(quiet_s=1), b.key: Seen(quiet_s=9)}
    assert shown(asked(on("a", a), on("b", b), seen=seen)) == "send b"


def test_what_others_ask_of_a_worker_is_what_it_said_beyond_ours() -> None:
    """A request of ours that has ended frees its slot at once, although the worker's word of it is on its way."""
    worker = worker_view("a", slots=4, slots_free=0, in_flight=3)
    assert room(worker) == 0
    assert room(worker, Seen(others=0)) == 1
    assert room(worker, Seen(others=1)) == 0


def never(node: str, **fields: Any) -> NodeView:
    """A node whose worker would do, but for the fields."""
    node_fields = {key: fields.pop(key) for key in ("state", "models") if key in fields}
    return node_view(node, [worker_view(node, **fields)], **node_fields)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(never("a", state=NodeState.DOWN), id="a node that is down"),
        pytest.param(never("a", state=NodeState.CONNECTING), id="a node that is not known yet"),
        pytest.param(never("z"), id="a node that may not serve it"),
        pytest.param(never("a", model=OTHER), id="another model"),
        pytest.param(never("a", sha256="b" * 64), id="another file"),
        pytest.param(never("a", sha256=""), id="a file that is not known yet"),
        pytest.param(replace(never("a"), workers=(worker_view("a", state=WorkerState.STOPPING),)), id="one that ends"),
        pytest.param(replace(never("a"), workers=(worker_view("a", state=WorkerState.FAILED),)), id="one that failed"),
    ],
)
def test_a_worker_that_will_not_do_is_not_taken(node: NodeView) -> None:
    decision = asked(node, on("b", worker_view("b", in_flight=3)), want=wanted(sha256=SHA))
    assert shown(decision) == "send b"


@pytest.mark.parametrize(
    ("target", "node_load", "worker", "expected"),
    [
        (LoadOptions(), LoadOptions(), {}, True),
        (LoadOptions(ctx=4096), LoadOptions(), {}, True),
        (LoadOptions(ctx=8192), LoadOptions(), {}, False),
        (LoadOptions(), LoadOptions(ctx=8192), {}, False),
        (LoadOptions(ctx=2048), LoadOptions(ctx=8192), {}, True),
        (LoadOptions(slots=2), LoadOptions(), {}, False),
        (LoadOptions(), LoadOptions(), {"ctx": 512}, False),
        (LoadOptions(ctx=512), LoadOptions(), {"ctx": 512}, True),
        (LoadOptions(), LoadOptions(ctx=512), {"ctx": 512}, True),
        (LoadOptions(ctx=0), LoadOptions(), {}, False),
        (LoadOptions(kv_type="q8_0"), LoadOptions(), {"options": WorkerOptions(kv_type="q8_0")}, True),
        (LoadOptions(kv_type="q8_0"), LoadOptions(), {"options": WorkerOptions()}, False),
        (LoadOptions(), LoadOptions(), {"options": WorkerOptions(kv_type="q8_0")}, False),
        (LoadOptions(), LoadOptions(devices=("CUDA1",)), {"options": WorkerOptions(devices=("CUDA0",))}, False),
        (LoadOptions(), LoadOptions(), {"options": WorkerOptions(devices=("CUDA0",), gpu_layers=30)}, True),
    ],
)
def test_a_worker_serves_where_it_was_loaded_as_it_would_be(
    target: LoadOptions, node_load: LoadOptions, worker: dict[str, Any], expected: bool
) -> None:
    view = worker_view("a", **worker)
    node = node_view("a", [view], load=node_load)
    assert serves(node, view, Target(MODEL, ALL, target), Situation((node,))) is expected
    made = Situation((node,), made=frozenset({(view.key, target)}))
    assert serves(node, view, Target(MODEL, ALL, target), made), "what a node gave for a load serves it"


# --- where there is none, or none is free ----------------------------------------------------------------------------


BUSY_OTHER: dict[str, Any] = {**BUSY, "model": OTHER}
STARTED = {Load("a", MODEL, LoadOptions()): 1.0}
FAILED = {Load("a", MODEL, LoadOptions()): NodeError(ErrorCode.MODEL_INVALID, "broken")}


@pytest.mark.parametrize(
    ("nodes", "now", "expected"),
    [
        pytest.param([on("a"), on("b")], {}, f"start a {MODEL}", id="a cold model is started on the first node"),
        pytest.param([on("a", models=()), on("b")], {}, f"start b {MODEL}", id="rather where its file is"),
        pytest.param([on("a", models=()), on("b", models=())], {}, f"start a {MODEL}", id="or where it can be fetched"),
        pytest.param([on("local"), on("b")], {}, f"start b {MODEL}", id="this machine only as a last resort"),
        pytest.param([on("a", worker_view("a", model=OTHER)), on("b")], {}, f"start a {MODEL}", id="beside others"),
        pytest.param([on("a", worker_view("a", **BUSY_OTHER)), on("b")], {}, f"start b {MODEL}", id="an idle node"),
        pytest.param([on("a"), on("b")], {"starting": STARTED}, "wait for a load", id="no stampede: one start"),
        pytest.param(
            [on("b"), on("a", worker_view("a", state=WorkerState.LOADING, progress=0.5))], {}, "wait for a load",
            id="nor where somebody else has begun",
        ),
        pytest.param([on("a", worker_view("a", **BUSY)), on("b")], {}, "wait", id="a short queue waits for a slot"),
        pytest.param([on("a"), on("b")], {"failed": FAILED}, f"start b {MODEL}", id="a failure: the next node"),
        pytest.param([on("a")], {"failed": FAILED}, "refuse MODEL_INVALID", id="what a load failed with is told"),
        pytest.param([on("a", state=NodeState.CONNECTING)], {}, "wait", id="not known yet"),
        pytest.param(
            [on("a", models=()), on("b", state=NodeState.CONNECTING, models=())], {}, "wait",
            id="nothing is fetched while a node that may have it is connecting",
        ),
        pytest.param([on("a", state=NodeState.DOWN)], {}, "refuse CONNECTION_LOST", id="unreachable"),
        pytest.param([on("z")], {}, "refuse WORKER_GONE", id="no node may"),
    ],
)  # fmt: skip
def test_what_happens_without_a_free_worker(nodes: list[NodeView], now: dict[str, Any], expected: str) -> None:
    want = Wanted((Target(MODEL, (*ALL, "local")),))
    assert shown(asked(*nodes, want=want, **now)) == expected


def test_a_queue_that_takes_longer_than_a_load_gets_another_worker() -> None:
    """2 slots that take 2 s a request: each one in the queue costs 1 s; loading takes 4 s."""
    nodes = [on("a", worker_view("a", **BUSY)), on("b", load_s={MODEL: 4.0}), on("c", load_s={MODEL: 9.0})]
    assert shown(asked(*nodes, waiting=4)) == "wait"
    assert shown(asked(*nodes, waiting=5)) == f"start b {MODEL}"
    starting = {Load("b", MODEL, LoadOptions()): 0.0}
    assert shown(asked(*nodes, waiting=50, starting=starting)) == "wait for a load", "one at a time"


def test_another_worker_for_a_long_queue_neither_fetches_a_file_nor_ends_what_is_in_use() -> None:
    busy = on("a", worker_view("a", **BUSY))
    assert shown(asked(busy, on("b", models=()), waiting=50)) == "wait"
    other = worker_view("b", model=OTHER)
    full = on("b", other, max_workers=1)
    assert shown(asked(busy, full, waiting=50, seen={other.key: Seen(up_s=999, quiet_s=30)})) == "wait"
    assert shown(asked(busy, full, waiting=50, seen={other.key: Seen(up_s=999, quiet_s=90)})) == f"start b {MODEL}"


def test_only_where_the_first_target_cannot_serve_the_next_does() -> None:
    want = Wanted((Target(MODEL, ("a",)), Target(OTHER, ("b",))))
    idle = on("b", worker_view("b", model=OTHER), models=(OTHER,))
    assert shown(asked(on("a", worker_view("a", **BUSY)), idle, want=want)) == "wait"
    assert shown(asked(on("a", state=NodeState.DOWN), idle, want=want)) == "send b"
    assert shown(asked(on("a"), idle, want=want, failed=FAILED)) == "send b"
    down = replace(idle, state=NodeState.DOWN)
    assert shown(asked(on("a"), down, want=want, failed=FAILED)) == "refuse MODEL_INVALID"


def test_a_node_that_hangs_while_it_is_connected_to_delays_a_cold_model_for_a_moment() -> None:
    nodes = [on("a", models=()), on("b", state=NodeState.CONNECTING, models=())]
    assert shown(asked(*nodes, waited_s=UNKNOWN_S - 1)) == "wait"
    assert shown(asked(*nodes, waited_s=UNKNOWN_S)) == f"start a {MODEL}"


def test_an_answer_that_goes_on_needs_the_same_file() -> None:
    other_file = replace(on("a"), models={MODEL: model_info(sha256="b" * 64)})
    assert shown(asked(other_file, on("b"), want=wanted(sha256=SHA))) == f"start b {MODEL}"
    assert shown(asked(other_file, want=wanted(sha256=SHA))) == "refuse WORKER_GONE"
    assert shown(asked(on("a", models=()), want=wanted(sha256=SHA))) == "refuse WORKER_GONE"


def test_a_worker_that_failed_the_request_is_not_taken_again_nor_asked_for() -> None:
    failed = worker_view("a")
    want = wanted(avoid=frozenset({failed.key}))
    assert shown(asked(on("a", failed), on("b", worker_view("b")), want=want)) == "send b"
    assert shown(asked(on("a", failed), on("b"), want=want)) == f"start b {MODEL}"
    assert shown(asked(on("a", failed), want=want)) == "wait", "it may be gone, and the news of it on its way"
    assert shown(asked(on("a", failed), want=want, waited_s=DOUBT_S)) == "refuse WORKER_GONE"
    assert shown(asked(on("a"), want=want)) == f"start a {MODEL}", "the news has come"


def test_a_node_whose_worker_may_be_gone_is_asked_for_another_once_that_is_known() -> None:
    failed = worker_view("a").key
    want, node = wanted(avoid=frozenset({failed})), on("a", in_doubt=frozenset({failed}))
    assert shown(asked(node, want=want)) == "wait", "its node would give the very worker"
    assert shown(asked(node, on("b"), want=want)) == f"start b {MODEL}"
    assert shown(asked(node)) == f"start a {MODEL}", "nobody else need wait"
    assert shown(asked(on("a"), want=want)) == f"start a {MODEL}"


def test_an_unreachable_node_is_told_with_why() -> None:
    decision = asked(on("a", state=NodeState.DOWN, reason="no route to host"))
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, ConnectError)
    assert "a: no route to host" in decision.error.message
    assert decision.error.hint


# --- models that cannot both be loaded -------------------------------------------------------------------------------


def swap(worker: WorkerView, up_s: float, quiet_s: float = 0.0, **node: Any) -> tuple[str, frozenset[WorkerKey]]:
    """Node a has `worker`, of another model, and no place beside it; loading takes 4 s, so that a turn has 16."""
    fields = {"models": (MODEL, OTHER), "max_workers": 1, "load_s": {MODEL: 4.0, OTHER: 4.0}} | node
    seen = {worker.key: Seen(up_s=up_s, quiet_s=quiet_s, others=0)}
    rivals = frozenset({Rivals("a", frozenset({MODEL, OTHER}))}) if node else frozenset()
    decision = asked(on("a", worker, **fields), seen=seen, rivals=rivals)
    return shown(decision), decision.gives_way if isinstance(decision, Wait) else frozenset()


@pytest.mark.parametrize("node", [{}, {"max_workers": None}], ids=["by the inventory", "as was found out"])
def test_a_model_has_its_turn_and_then_gives_way(node: dict[str, Any]) -> None:
    idle, busy = worker_view("a", model=OTHER), worker_view("a", **BUSY_OTHER)
    assert swap(busy, 15, **node) == ("wait", frozenset()), "in its turn it is sent what comes"
    assert swap(busy, 16, **node) == ("wait", {busy.key}), "after that nothing younger"
    assert swap(idle, 15, 4, **node) == ("wait", frozenset()), "idle for a moment, in its turn"
    assert swap(idle, 15, 5, **node)[0] == f"start a {MODEL}", "out of use"
    assert swap(idle, 16, 0, **node)[0] == f"start a {MODEL}", "its turn is over"


def test_it_gives_way_until_its_node_has_ended_it() -> None:
    """Else the next request would find it idle, and the model that was started for would find it busy."""
    worker = worker_view("a", model=OTHER)
    starting = {Load("a", MODEL, LoadOptions()): 0.1}
    for max_workers, expected in ((1, {worker.key}), (2, set()), (None, set())):
        node = on("a", worker, max_workers=max_workers)
        decision = asked(node, starting=starting, seen={worker.key: Seen(up_s=99, quiet_s=0)})
        assert isinstance(decision, Wait)
        assert decision.gives_way == expected


def test_what_gives_way_gets_nothing() -> None:
    worker = worker_view("a")
    assert shown(asked(on("a", worker), held=frozenset({worker.key}))) == "wait"
    assert shown(asked(on("a", worker), on("b", worker_view("b")), held=frozenset({worker.key}))) == "send b"


def test_what_nobody_used_for_long_ends_first() -> None:
    a, b = worker_view("a", model=OTHER), worker_view("b", model=OTHER)
    nodes = [on("a", a, max_workers=1), on("b", b, max_workers=1)]
    seen = {a.key: Seen(up_s=99, quiet_s=6), b.key: Seen(up_s=99, quiet_s=61)}
    assert shown(asked(*nodes, seen=seen)) == f"start b {MODEL}"
    assert shown(asked(*nodes, on("c"), seen=seen)) == f"start c {MODEL}", "a place before one that has to be made"


def test_a_node_that_is_busy_is_waited_for_but_not_for_ever() -> None:
    busy = {Load("a", MODEL, LoadOptions()): NodeError(ErrorCode.NODE_BUSY, "busy")}
    assert shown(asked(on("a"), failed=busy, passing=frozenset(busy))) == "wait"
    assert shown(asked(on("a"), failed=busy, passing=frozenset(busy), waited_s=120)) == "refuse NODE_BUSY"


def test_a_start_takes_a_place_before_its_worker_is_seen() -> None:
    starting = {Load("a", OTHER, LoadOptions()): 0.0}
    assert shown(asked(on("a", max_workers=1), starting=starting)) == "wait"
    assert shown(asked(on("a", max_workers=2), starting=starting)) == f"start a {MODEL}"


# --- the known traps -------------------------------------------------------------------------------------------------


def run_through(workers: list[WorkerView], prompts: list[tuple[str, ...]]) -> list[int]:
    """Requests that come one after another and do not end: how many each worker has in the end."""
    workers = list(workers)
    for prompt in prompts:
        decision = asked(*(on(worker.key.node, worker) for worker in workers), want=wanted(digests=prompt))
        if isinstance(decision, Send):
            at = workers.index(decision.worker)
            chosen = decision.worker
            held = (*chosen.held, prompt)[-chosen.slots :]
            workers[at] = replace(chosen, in_flight=chosen.in_flight + 1, held=held)
    return [worker.in_flight for worker in workers]


def test_a_prompt_that_all_share_does_not_pile_up_on_the_worker_that_holds_it() -> None:
    """Trap: consistent hashing, and affinity without load, send all requests with one system prompt to one worker."""
    chats = [(*PROMPT[:8], f"{number}", f"{number} x") for number in range(8)]
    assert run_through([worker_view(node) for node in ALL], chats) == [2, 2, 2, 2]
    assert run_through([worker_view(node, slots=2) for node in ALL], [PROMPT] * 8) == [2, 2, 2, 2]


def test_misses_do_not_flood_one_worker() -> None:
    """Trap: requests that match nothing all go to the worker with the smallest record, or to the first."""
    counts = run_through([worker_view(node) for node in ALL], [(f"{n:x}",) for n in range(8)])
    assert counts == [2, 2, 2, 2]


def test_misses_one_after_another_spare_the_memory_of_others() -> None:
    """Trap: on an idle fleet all loads are equal, and the first worker's memory is overwritten time and again."""
    workers = {node: worker_view(node, slots=2) for node in ALL}
    quiet = dict.fromkeys(ALL, 100.0)
    used = []
    for number in range(8):
        prompt = (f"{number:x}",)
        seen = {worker.key: Seen(quiet_s=quiet[node]) for node, worker in workers.items()}
        decision = asked(
            *(on(node, worker) for node, worker in workers.items()), want=wanted(digests=prompt), seen=seen
        )
        assert isinstance(decision, Send)
        node = decision.worker.key.node
        used.append(node)
        workers[node] = replace(workers[node], held=(*workers[node].held, prompt))
        quiet = {name: 0.0 if name == node else seconds + 1 for name, seconds in quiet.items()}
    assert {node: used.count(node) for node in ALL} == dict.fromkeys(ALL, 2)


def test_one_overloaded_worker_does_not_turn_affinity_off_for_the_rest() -> None:
    """Trap: a switch that goes by the difference of the fleet's loads, and then routes all requests by load alone."""
    full = worker_view("a", slots=64, slots_free=0, in_flight=64, state=WorkerState.BUSY)
    chat = holding("b", 10, in_flight=1)
    nodes = [on("a", full), on("b", chat), on("c", worker_view("c")), on("d", worker_view("d"))]
    assert shown(asked(*nodes, want=wanted(digests=PROMPT))) == "send b"


# --- what holds for all ----------------------------------------------------------------------------------------------

STATES = st.sampled_from(list(WorkerState))


@st.composite
def workers_of(draw: st.DrawFn, node: str) -> tuple[WorkerView, ...]:
    workers = []
    for number in range(draw(st.integers(0, 3))):
        slots = draw(st.integers(1, 4))
        free = draw(st.integers(0, slots))
        workers.append(
            worker_view(
                node,
                number,
                model=draw(st.sampled_from([MODEL, OTHER])),
                state=draw(STATES),
                slots=slots,
                slots_free=free,
                in_flight=draw(st.integers(0, slots)),
                queued=draw(st.integers(0, 2)),
                held=tuple(PROMPT[: draw(st.integers(0, 10))] for _ in range(slots)),
            )
        )
    return tuple(workers)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    nodes = tuple(
        node_view(
            name,
            draw(workers_of(name)),
            state=draw(st.sampled_from(list(NodeState))),
            models=draw(st.sets(st.sampled_from([MODEL, OTHER]))),
            max_workers=draw(st.sampled_from([None, 1, 2])),
        )
        for name in ALL
    )
    workers = [worker for node in nodes for worker in node.workers]
    loads = st.builds(Load, st.sampled_from(ALL), st.sampled_from([MODEL, OTHER]), st.just(LoadOptions()))
    error = NodeError(ErrorCode.MODEL_INVALID, "broken")
    return Situation(
        nodes,
        starting=draw(st.dictionaries(loads, st.floats(0, 10), max_size=2)),
        failed=dict.fromkeys(draw(st.lists(loads, max_size=3)), error),
        held=frozenset(worker.key for worker in workers if draw(st.integers(0, 5)) == 0),
        seen={worker.key: Seen(draw(st.floats(0, 100)), draw(st.floats(0, 100))) for worker in workers},
    )


@given(situations(), st.integers(0, 10), st.booleans(), st.integers(1, 50))
def test_every_decision_is_one_that_can_be_carried_out(
    now: Situation, blocks: int, continues: bool, waiting: int
) -> None:
    want = wanted(digests=PROMPT[:blocks], sha256=SHA if continues else "")
    decision = decide(now, want, waiting=waiting)
    assert decision == decide(now, want, waiting=waiting) or isinstance(decision, Refuse)
    nodes = {node.name: node for node in now.nodes}
    free = [
        worker
        for node in now.nodes
        if node.state is NodeState.UP
        for worker in node.workers
        if worker.model == MODEL
        and worker.state in (WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY)
        and room(worker) > 0
        and worker.key not in now.held
    ]
    match decision:
        case Send(worker):
            assert worker in free
            assert worker == best(free, want.digests, now)
        case Start(node, target):
            assert not free
            assert nodes[node].state is NodeState.UP
            load = Load(node, target.model, target.load)
            assert load not in now.starting
            assert load not in now.failed
        case _:
            assert not free, "nobody waits, or is refused, while there is a free worker"


@given(st.integers(0, 2), st.integers(1, 10), st.integers(0, 1))
def test_a_chat_stays_where_its_turns_are_while_there_is_room(busy: int, turns: int, other: int) -> None:
    """Under moderate load: at most half of the slots more taken than elsewhere."""
    chat = holding("b", turns, in_flight=busy)
    nodes = [on("a", worker_view("a", in_flight=other)), on("b", chat), on("c", worker_view("c", in_flight=other))]
    assert shown(asked(*nodes, want=wanted(digests=PROMPT[: turns + 1]))) == "send b"


def test_a_model_that_turned_out_to_be_for_something_else_is_fetched_by_no_other_node() -> None:
    nodes = [node_view(name, models=()) for name in "ab"]
    why = NodeError(ErrorCode.USAGE, "it only embeds texts", details={"able": ["embeddings"]})
    failed = {Load("a", MODEL, LoadOptions(), "chat"): why}
    chats, embeds = (Wanted((replace(ASKED, ability=each),)) for each in ("chat", "embeddings"))
    assert asked(*nodes, want=chats, failed=failed) == Refuse(why)
    assert shown(asked(*nodes, want=embeds, failed=failed)) == f"start a {MODEL}"
    elsewhere = Wanted((replace(ASKED, ability="chat"), Target(OTHER, ALL)))
    assert shown(asked(*nodes, want=elsewhere, failed=failed)) == f"start a {OTHER}", "what it falls back to"


@pytest.mark.parametrize("ability", ["chat", "embeddings", ""])
def test_a_load_that_somebody_else_asked_for_is_waited_for(ability: str) -> None:
    """The catalog may tell meanwhile what the model can do; and no two nodes fetch it for two kinds of requests."""
    nodes = [node_view(name, models=(), max_workers=1) for name in "ab"]
    starting = {Load("a", MODEL, LoadOptions(), "chat"): 1.0}
    for background in (False, True):
        want = Wanted((replace(ASKED, nodes=("a",), ability=ability),), background=background)
        assert isinstance(asked(*nodes, want=want, starting=starting), Wait)
    want = Wanted((replace(ASKED, ability=ability),))
    assert isinstance(asked(*nodes, want=want, starting=starting), Wait)


BATCH = Wanted((ASKED,), background=True)
CHOSEN = Wanted((ASKED,), background=True, fetches=True)


def test_a_batch_has_its_model_loaded_on_every_node_that_has_room() -> None:
    served = node_view("a", [worker_view("a")])
    assert shown(asked(served, node_view("b"), node_view("c"), want=BATCH)) == f"start b {MODEL}"
    starting = {Load("b", MODEL, LoadOptions()): 1.0}
    assert shown(asked(served, node_view("b"), node_view("c"), want=BATCH, starting=starting)) == f"start c {MODEL}"
    loading = node_view("b", [worker_view("b", state=WorkerState.LOADING)])
    assert shown(asked(served, loading, want=BATCH)) == "send a"
    assert shown(asked(served, node_view("b"))) == "send a"  # nobody else's request is worth that


def test_a_batch_loads_nothing_where_there_is_no_room_for_it() -> None:
    served = node_view("a", [worker_view("a")])
    full = node_view("b", [worker_view("b", model=OTHER, **BUSY)], max_workers=1)
    assert shown(asked(served, full, want=BATCH)) == "send a"
    error = NodeError(ErrorCode.VRAM_EXHAUSTED, "it needs more")
    failed = {Load("b", MODEL, LoadOptions()): error}
    assert shown(asked(served, node_view("b"), want=BATCH, failed=failed)) == "send a"


def test_only_nodes_that_were_chosen_get_the_model_file_for_a_batch() -> None:
    served, bare = node_view("a", [worker_view("a")]), node_view("b", models=())
    assert shown(asked(served, bare, want=BATCH)) == "send a"
    assert shown(asked(served, bare, want=CHOSEN)) == f"start b {MODEL}"


def test_this_machine_helps_a_batch_where_it_was_chosen() -> None:
    target = Target(MODEL, ("a", "local"))
    nodes = [node_view("a", [worker_view("a")]), node_view("local")]
    assert shown(asked(*nodes, want=Wanted((target,), background=True))) == "send a"
    assert shown(asked(*nodes, want=Wanted((target,), background=True, fetches=True))) == f"start local {MODEL}"


def test_slots_that_the_background_has_are_free_for_others() -> None:
    full = worker_view("a", slots=2, slots_free=0, queued=1, background=3, state=WorkerState.BUSY)
    assert (room(full), room(full, background=True)) == (2, -1)
    assert (room(full, Seen(others=3)), room(full, Seen(others=3), background=True)) == (2, -1)
    mixed = worker_view("a", slots=2, slots_free=0, queued=1, background=2, in_flight=1, state=WorkerState.BUSY)
    assert room(mixed, Seen(others=2)) == 1
    assert shown(asked(node_view("a", [full]))) == "send a"
    assert shown(asked(node_view("a", [full]), want=BATCH)) == "wait"
