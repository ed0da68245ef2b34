"""Tables for the decisions one can think of, and properties for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.hive.fit.scheduler import (
    Decision,
    Demand,
    MakeRoom,
    NoMemory,
    NoSlot,
    Reuse,
    Spawn,
    WorkerKey,
    WorkerView,
    decide,
    held_mb,
)
from rbee_remote.protocol import WorkerOptions, WorkerState

OPTIONS = WorkerOptions(ctx=4096, slots=4, backend="cpu", gpu_layers=0, threads=1)


def key(model: str) -> WorkerKey:
    return WorkerKey(model, f"/models/{model}", OPTIONS, OPTIONS)


def worker(name: str, model: str = "other", *, used: float = 0.0, mb: int = 100, **changes: object) -> WorkerView:
    view = WorkerView(name, key(model), WorkerState.IDLE, in_use=False, last_used=used, memory="ram", memory_mb=mb)
    return replace(view, **changes)  # type: ignore[arg-type]


def demand(*, free: int = 1000, needed: int = 500, limit: int | None = None) -> Demand:
    return Demand(key("wanted"), "ram", needed, free, limit)


@pytest.mark.parametrize(
    ("has", "given", "wanted", "serves"),
    [
        (16384, None, None, True),
        (4096, 4096, None, True),
        (8192, 8192, None, True),
        (512, 512, None, False),
        (2048, None, None, True),
        (16384, None, 4096, True),
        (16384, 16384, 4096, True),
        (4096, None, 8192, False),
        (4096, 4096, 8192, False),
        (16384, None, 16384, True),
        (16384, None, 0, False),
    ],
)
def test_a_context_is_any_that_is_large_enough(has: int, given: int | None, wanted: int | None, serves: bool) -> None:
    there = WorkerKey("m", "/m", replace(OPTIONS, ctx=has), replace(OPTIONS, ctx=given))
    asked = replace(OPTIONS, ctx=wanted)
    assert there.serves(WorkerKey("m", "/m", asked, asked)) is serves


@pytest.mark.parametrize(
    ("has", "wanted", "files", "serves"),
    [
        ((), (), (), True),
        (("a:1",), ("a:1",), ("/a",), True),
        (("a:1",), (), (), False),
        ((), ("a:1",), ("/a",), False),
        (("a:1",), ("a:0.5",), ("/a",), False),
        (("a:1",), ("a:1",), ("/newer",), False),
    ],
)
def test_a_worker_serves_those_who_want_its_very_adapters(
    has: tuple[str, ...], wanted: tuple[str, ...], files: tuple[str, ...], serves: bool
) -> None:
    options = replace(OPTIONS, lora=has)
    there = WorkerKey("m", "/m", options, options, ("/a",) * len(has))
    asked = replace(OPTIONS, lora=wanted)
    assert there.serves(WorkerKey("m", "/m", asked, asked, files)) is serves


BUSY: dict[str, Any] = {"state": WorkerState.BUSY, "in_use": True}
STOPPING: dict[str, Any] = {"state": WorkerState.STOPPING, "in_use": True}
FAILED: dict[str, Any] = {"state": WorkerState.FAILED, "in_use": True}
ON_GPUS: dict[str, Any] = {"memory": "vram", "gpus": frozenset({"CUDA0", "CUDA1"})}

#: Of which one is three times as large.
UNEQUAL: dict[str, Any] = {**ON_GPUS, "shares": (("CUDA0", 72000.0), ("CUDA1", 24000.0))}


def on_gpus(*gpus: str) -> Demand:
    """50 MB short, which is half of what a worker on two GPUs has."""
    return replace(demand(free=450), memory="vram", gpus=frozenset(gpus))


LOADING: dict[str, Any] = {"state": WorkerState.LOADING, "in_use": True}


@pytest.mark.parametrize(
    ("asked", "workers", "expected"),
    [
        (demand(), [], Spawn()),
        (demand(), [worker("a", "wanted")], Reuse("a")),
        (demand(), [worker("a", "wanted", **BUSY)], Reuse("a")),
        (demand(free=0), [worker("a", "wanted", **LOADING)], Reuse("a")),
        (demand(limit=1), [worker("a", "wanted", **FAILED)], Spawn()),
        (demand(limit=2), [worker("a")], Spawn()),
        (demand(limit=1), [worker("a")], MakeRoom(("a",), ())),
        (demand(limit=1), [worker("a", **BUSY)], NoSlot(1)),
        (demand(limit=1), [worker("a", **LOADING)], NoSlot(1)),
        (demand(limit=1), [worker("a", "wanted", **STOPPING)], MakeRoom((), ("a",))),
        (demand(), [worker("a", "wanted", **STOPPING)], Spawn()),
        (demand(free=450), [worker("new", used=2), worker("old", used=1)], MakeRoom(("old",), ())),
        (demand(free=450), [worker("new", used=2), worker("old", used=1, **BUSY)], MakeRoom(("new",), ())),
        (demand(free=450), [worker("small", used=1, mb=10), worker("large", used=2)], MakeRoom(("large",), ())),
        (demand(free=350), [worker("a", used=1), worker("b", used=2)], MakeRoom(("a", "b"), ())),
        (demand(free=450), [worker("a", **STOPPING), worker("b")], MakeRoom((), ("a",))),
        (demand(free=350), [worker("a", **STOPPING), worker("b")], MakeRoom(("b",), ("a",))),
        (demand(free=450), [worker("a", **BUSY)], NoMemory(500, 450, 550)),
        (demand(free=100), [worker("a"), worker("b", **BUSY)], NoMemory(500, 200, 300)),
        (demand(free=450), [worker("gpu", memory="vram", mb=9000)], NoMemory(500, 450, 450)),
        (on_gpus("CUDA1"), [worker("a", **ON_GPUS)], MakeRoom(("a",), ())),
        (on_gpus("CUDA0", "CUDA1"), [worker("a", **ON_GPUS)], MakeRoom(("a",), ())),
        (on_gpus("CUDA1"), [worker("a", **UNEQUAL)], NoMemory(500, 475, 475)),
        (on_gpus("CUDA0"), [worker("a", **UNEQUAL)], MakeRoom(("a",), ())),
        (on_gpus("CUDA0", "CUDA1", "CUDA2"), [worker("a", **UNEQUAL)], MakeRoom(("a",), ())),
        (on_gpus("CUDA2"), [worker("a", **ON_GPUS)], NoMemory(500, 450, 450)),
        (on_gpus(), [worker("a", **ON_GPUS)], MakeRoom(("a",), ())),
    ],
)
def test_decisions(asked: Demand, workers: list[WorkerView], expected: Decision) -> None:
    assert decide(asked, workers) == expected


states = st.sampled_from(list(WorkerState))
views = st.builds(
    WorkerView,
    id=st.uuids().map(str),
    key=st.sampled_from(["wanted", "a", "b"]).map(key),
    state=states,
    in_use=st.booleans(),
    last_used=st.floats(0, 100),
    memory=st.sampled_from(["ram", "vram"]),
    memory_mb=st.integers(0, 1000),
)
demands = st.builds(
    Demand,
    key=st.just(key("wanted")),
    memory=st.sampled_from(["ram", "vram"]),
    needed_mb=st.integers(0, 3000),
    free_mb=st.integers(0, 3000),
    max_workers=st.none() | st.integers(1, 5),
)


def fits(asked: Demand, left: list[WorkerView], gone: list[WorkerView]) -> bool:
    slot = asked.max_workers is None or len(left) < asked.max_workers
    return slot and asked.needed_mb <= asked.free_mb + held_mb(gone, asked.memory)


@given(demands, st.lists(views, max_size=7, unique_by=lambda view: view.id))
def test_no_decision_breaks_a_rule(asked: Demand, workers: list[WorkerView]) -> None:
    by_id = {view.id: view for view in workers}
    live = [view for view in workers if view.state is not WorkerState.FAILED]
    match decide(asked, workers):
        case Reuse(chosen):
            assert by_id[chosen].key == asked.key
            assert by_id[chosen].state not in (WorkerState.FAILED, WorkerState.STOPPING)
        case Spawn():
            assert fits(asked, live, [])
        case MakeRoom(evict, await_end):
            gone = [by_id[name] for name in (*evict, *await_end)]
            assert gone
            assert not any(by_id[name].in_use for name in evict)
            assert all(by_id[name].state is WorkerState.STOPPING for name in await_end)
            assert fits(asked, [view for view in live if view not in gone], gone)
            for name in evict:
                rest = [view for view in gone if view.id != name]
                assert not fits(asked, [view for view in live if view not in rest], rest), "evicted in vain"
        case NoSlot() | NoMemory():
            gone = [view for view in live if not view.in_use or view.state is WorkerState.STOPPING]
            assert not fits(asked, [view for view in live if view not in gone], gone)


@given(demands, st.lists(views, max_size=7, unique_by=lambda view: view.id))
def test_making_room_leads_to_a_worker(asked: Demand, workers: list[WorkerView]) -> None:
    decision = decide(asked, workers)
    if isinstance(decision, MakeRoom):
        gone = [view for view in workers if view.id in (*decision.evict, *decision.await_end)]
        more = replace(asked, free_mb=asked.free_mb + held_mb(gone, asked.memory))
        assert decide(more, [view for view in workers if view not in gone]) == Spawn()
    else:
        assert isinstance(decision, (Reuse, Spawn, NoSlot, NoMemory))


@pytest.mark.parametrize(("wanted", "expected"), [(4096, "b"), (8192, "b"), (8193, "c"), (None, "a"), (65536, "")])
def test_of_several_workers_that_do_the_one_with_least_context_serves(wanted: int | None, expected: str) -> None:
    def has(ctx: int) -> WorkerKey:
        return WorkerKey("m", "/m", replace(OPTIONS, ctx=ctx), replace(OPTIONS, ctx=None))

    workers = [worker(name, key=has(ctx)) for name, ctx in (("a", 32768), ("b", 8192), ("c", 16384))]
    asked = replace(OPTIONS, ctx=wanted)
    decision = decide(replace(demand(), key=WorkerKey("m", "/m", asked, asked)), workers)
    assert decision == (Reuse(expected) if expected else Spawn())
