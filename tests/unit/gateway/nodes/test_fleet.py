"""Nodes that are held: what is known of them, what happens when one is lost, and how workers on them are started."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from rbee.base.errors import ConnectError, NodeError, RefusedError, UsageError
from rbee.gateway.base.views import NodeState, NodeView, Target, Wanted, WorkerKey
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.routing.dispatcher import FleetDispatcher
from rbee_remote.protocol import ErrorCode, SlotMemory, WorkerState
from tests.doubles.hive import model_info, worker_info, worker_news
from tests.patience import PATIENCE_S
from tests.unit.gateway.fleet_bed import Bed, down, node_that, until, up

A, B = WorkerKey("gpu1", "a" * 16), WorkerKey("gpu1", "b" * 16)
MODEL = Target("smollm2:135m", ("gpu1",))
UNREACHABLE = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu1 cannot be reached", details={"reason": "no route"})


async def test_a_node_that_was_used_before_tells_its_catalog_and_its_workers(bed: Bed) -> None:
    node = await bed.used("gpu1")
    info = worker_info()
    await node.tell(info, **{info.id: worker_news(info, slots_free=1, held=[SlotMemory(1, ("0" * 16, "1" * 16))])})
    async with NodeFleet(bed.context("gpu1")) as fleet:
        view = await node_that(fleet, "gpu1", lambda view: bool(view.workers) and view.workers[0].slots_free == 1)
    (worker,) = view.workers
    assert view.models == {"smollm2:135m": model_info()}
    assert (worker.key, worker.model, worker.sha256, worker.state) == (A, "smollm2:135m", "f" * 64, WorkerState.IDLE)
    assert (worker.held, worker.typical_s, worker.slots) == (((), ("0" * 16, "1" * 16)), 0.5, 2)
    assert bed.attached == ["gpu1"]


async def test_a_node_that_was_never_used_is_connected_to_and_left_alone(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        view = await up(fleet, "gpu1")
    assert (view.models, view.workers, bed.attached, bed.nodes["gpu1"].asked) == ({}, (), [], 0)


async def test_a_node_that_hangs_delays_nobody(bed: Bed) -> None:
    bed.hangs.add("gpu1")
    async with NodeFleet(bed.context("gpu1", "gpu2")) as fleet:
        assert [view.state for view in fleet.nodes] == [NodeState.CONNECTING] * 2
        await up(fleet, "gpu2")
        assert [view.state for view in fleet.nodes] == [NodeState.CONNECTING, NodeState.UP]


async def test_a_node_that_cannot_be_reached_says_why_and_comes_back_by_itself(bed: Bed) -> None:
    bed.errors["gpu1"] = UNREACHABLE
    async with NodeFleet(bed.context("gpu1")) as fleet:
        assert (await down(fleet, "gpu1")).reason == "cannot be reached (no route)"
        with pytest.raises(ConnectError) as caught:
            await fleet.start_worker("gpu1", MODEL)
        assert caught.value.details["reason"] == "cannot be reached (no route)"
        del bed.errors["gpu1"]
        assert (await up(fleet, "gpu1")).reason == ""
    assert len(bed.opened) >= 2
    assert bed.notices == ["gpu1 is down: cannot be reached (no route)", "gpu1 is back"]


async def test_a_node_that_refuses_is_not_tried_again_at_once(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.errors["gpu1"] = RefusedError(ErrorCode.HOST_KEY_MISMATCH, "the host key of gpu1 is another one")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        assert "host key" in (await down(fleet, "gpu1")).reason
        await asyncio.sleep(0.05)
        assert bed.opened == ["gpu1"]


async def test_a_lost_connection_is_opened_again_and_what_is_known_is_heard_anew(bed: Bed) -> None:
    await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        bed.connections["gpu1"].lose()
        view = await lost(fleet, "gpu1")
        assert (view.state, view.models) == (NodeState.CONNECTING, {"smollm2:135m": model_info()})
        await node_that(fleet, "gpu1", lambda view: view.state is NodeState.UP and bool(view.workers))
    assert (bed.opened, bed.attached, bed.open_now) == (["gpu1", "gpu1"], ["gpu1"], 0)


async def lost(fleet: NodeFleet, name: str) -> NodeView:
    return await node_that(fleet, name, lambda view: view.state is not NodeState.UP)


async def test_who_wants_a_node_whose_connection_was_cut_waits_for_the_next(bed: Bed) -> None:
    await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet, FleetDispatcher(fleet) as dispatcher:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        bed.connections["gpu1"].lose()
        await lost(fleet, "gpu1")
        ticket = dispatcher.enter(Wanted((MODEL,)))
        assert (await asyncio.wait_for(ticket.worker(), PATIENCE_S)).key == A
        ticket.close()
    assert bed.nodes["gpu1"].spawned == []
    assert bed.notices == ["gpu1 is down: the connection to gpu1 was lost", "gpu1 is back"]


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_node_that_cannot_be_connected_to_again_is_down(
    hangs: bool, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.node_link.HOLD_AGAIN_S", 0.05 if hangs else 10 * PATIENCE_S)
    await bed.used("gpu1")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await up(fleet, "gpu1")
        bed.hangs |= {"gpu1"} if hangs else set()
        bed.errors["gpu1"] = UNREACHABLE
        bed.connections["gpu1"].lose()
        assert (await lost(fleet, "gpu1")).state is NodeState.CONNECTING
        await down(fleet, "gpu1")


async def test_a_hive_that_is_silent_takes_the_node_down_and_leaves_its_connection(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.node_link.HOLD_SILENCE_S", 0.05)
    bed.know("gpu1")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.models))
        assert "no answer" in (await down(fleet, "gpu1")).reason
        await up(fleet, "gpu1")
    assert bed.opened == ["gpu1"]


async def test_a_hive_that_has_ended_leaves_its_catalog_and_is_not_started_again(bed: Bed) -> None:
    node = await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        connection = bed.connections["gpu1"]
        connection.stop_listening(node.hive_socket)
        connection.end_streams()
        view = await node_that(fleet, "gpu1", lambda view: not view.workers and view.state is NodeState.UP)
        assert (view.models, bed.attached) == ({"smollm2:135m": model_info()}, ["gpu1"])
        node.listen(connection)  # somebody else starts one
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
    assert bed.attached == ["gpu1"]


async def test_a_hive_that_somebody_starts_after_the_connection_was_lost_is_found(bed: Bed) -> None:
    node = await bed.used("gpu1")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.models))
        bed.connections["gpu1"].stop_listening(node.hive_socket)
        bed.connections["gpu1"].lose()
        await until(fleet, lambda: len(bed.opened) == 2)
        bed.connections["gpu1"].stop_listening(node.hive_socket)
        bed.connections["gpu1"].end_streams()
        await up(fleet, "gpu1")
        await node.tell(worker_info())
        node.listen(bed.connections["gpu1"])
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))


async def test_a_connection_over_which_no_stream_opens_any_more_is_opened_anew(bed: Bed) -> None:
    bed.know("gpu1")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.models))
        bed.connections["gpu1"].lost = True  # and nobody says so
        bed.connections["gpu1"].end_streams()
        await down(fleet, "gpu1")
        await up(fleet, "gpu1")
    assert bed.opened == ["gpu1", "gpu1"]


async def test_a_node_that_cannot_be_set_up_says_why(bed: Bed) -> None:
    bed.know("gpu1")
    bed.attach_error = NodeError(ErrorCode.DISK_FULL, "the disk of gpu1 is full")
    async with NodeFleet(bed.context("gpu1")) as fleet:
        assert (await down(fleet, "gpu1")).reason == "the disk of gpu1 is full"


async def test_a_worker_is_started_once_for_all_who_want_it(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await up(fleet, "gpu1")
        node = bed.nodes["gpu1"]
        starts = [asyncio.create_task(fleet.start_worker("gpu1", MODEL)) for _ in range(5)]
        view = await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        assert view.workers[0].state is WorkerState.LOADING
        await node.tell(worker_info(B.id, WorkerState.LOADING, progress=0.5))
        await node_that(fleet, "gpu1", lambda view: view.workers[0].progress == 0.5)
        starts[0].cancel()
        await node.tell(worker_info(B.id))
        keys = await asyncio.gather(*starts, return_exceptions=True)
        view = await node_that(fleet, "gpu1", lambda view: bool(view.load_s))
    assert keys[1:] == [B] * 4
    assert isinstance(keys[0], asyncio.CancelledError)
    assert len(node.spawned) == 1
    assert 0 < view.load_s["smollm2:135m"] < PATIENCE_S
    with bed.open_registry() as registry:
        assert [row.worker_id for row in registry.rows("gpu1")] == [B.id]


async def test_a_start_that_nobody_waits_for_any_more_is_given_up(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        start = asyncio.create_task(fleet.start_worker("gpu1", MODEL))
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        start.cancel()
        await node_that(fleet, "gpu1", lambda view: not view.workers)
    assert bed.nodes["gpu1"].stopped == [B.id]


async def test_a_start_whose_connection_breaks_goes_on_over_the_next(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        start = asyncio.create_task(fleet.start_worker("gpu1", MODEL))
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        bed.connections["gpu1"].lose()
        await until(fleet, lambda: len(bed.opened) == 2)
        await bed.nodes["gpu1"].tell(worker_info(B.id))
        assert await start == B
    assert len(bed.nodes["gpu1"].spawned) == 2


async def test_what_a_load_failed_with_is_raised_for_all(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        starts = [asyncio.create_task(fleet.start_worker("gpu1", MODEL)) for _ in range(2)]
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        error = {"code": "MODEL_INVALID", "message": "no model"}
        await bed.nodes["gpu1"].tell(replace(worker_info(B.id, WorkerState.FAILED), error=error))
        for start in starts:
            with pytest.raises(NodeError) as caught:
                await start
            assert caught.value.code is ErrorCode.MODEL_INVALID


async def test_a_node_that_is_not_there_any_more_starts_nothing(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        with pytest.raises(ConnectError):
            await fleet.start_worker("gpu9", MODEL)


async def test_requests_are_counted_at_once(bed: Bed) -> None:
    await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        fleet.begun(A)
        fleet.begun(A)
        assert fleet.nodes[0].workers[0].in_flight == 2
        fleet.ended(A)
        fleet.ended(A)
        assert fleet.nodes[0].workers[0].in_flight == 0


async def test_a_worker_that_failed_is_out_of_sight_until_it_is_heard(bed: Bed) -> None:
    node = await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        node.mute = True
        fleet.failed(A)
        assert (fleet.nodes[0].workers, fleet.nodes[0].in_doubt) == ((), {A})
        node.mute = False
        await node.changed()
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))


async def test_a_request_goes_to_its_worker_and_comes_back_as_it_is(bed: Bed) -> None:
    node = await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        async with fleet.worker(A).send("POST", "/v1/chat/completions?x=1", {"a": "b"}, b"{}") as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/event-stream"
            assert [chunk async for chunk in answer.chunks()] == [b"data: hello\n\n"]
        with pytest.raises(NodeError) as caught:
            async with fleet.worker(B).send("GET", "/", {}, b""):
                pass
    assert node.requests == [("POST", "/v1/chat/completions?x=1", b"{}")]
    assert caught.value.code is ErrorCode.WORKER_GONE


# --- the inventory ------------------------------------------------------------------------------------------------

ONE = '[nodes.gpu1]\nhost = "one"\n'
TWO = ONE + '[nodes.gpu2]\nhost = "two"\ntags = ["fast"]\n'


def names(fleet: NodeFleet) -> list[str]:
    return [view.name for view in fleet.nodes]


async def test_the_inventory_is_read_again_when_it_changes(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.fleet.INVENTORY_LOOK_S", 0.001)
    async with NodeFleet(bed.context_of(ONE)) as fleet:
        assert names(fleet) == ["gpu1", "local"]
        await up(fleet, "gpu1")
        bed.write_inventory(TWO)
        await until(fleet, lambda: "gpu2" in names(fleet))
        assert names(fleet) == ["gpu1", "gpu2", "local"]
        await up(fleet, "gpu2")
        bed.write_inventory('[nodes.gpu2]\nhost = "two"\nmax_workers = 3\n')
        await until(fleet, lambda: "gpu1" not in names(fleet))
        assert fleet.nodes[0].max_workers == 3
        assert fleet.inventory.nodes["gpu2"].max_workers == 3
    assert sorted(bed.opened) == ["gpu1", "gpu2", "local"]
    assert bed.open_now == 0


async def test_a_node_that_is_reached_otherwise_is_connected_to_anew(bed: Bed) -> None:
    async with NodeFleet(bed.context_of(ONE)) as fleet:
        await up(fleet, "gpu1")
        bed.write_inventory('[nodes.gpu1]\nhost = "another"\n')
        fleet.reload()
        assert fleet.nodes[0].state is NodeState.CONNECTING
        await up(fleet, "gpu1")
    assert bed.opened.count("gpu1") == 2


async def test_a_node_that_is_taken_out_finishes_its_requests(bed: Bed) -> None:
    await bed.used("gpu1", worker_info())
    async with NodeFleet(bed.context_of(ONE)) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(view.workers))
        await up(fleet, "local")
        fleet.begun(A)
        async with fleet.worker(A).send("POST", "/v1/x", {}, b"{}") as answer:
            bed.write_inventory("")
            fleet.reload()
            assert names(fleet) == ["local"]
            assert [chunk async for chunk in answer.chunks()] == [b"data: hello\n\n"]
        assert bed.open_now == 2
        fleet.ended(A)
        async with asyncio.timeout(PATIENCE_S):
            while bed.open_now == 2:
                await asyncio.sleep(0)


async def test_a_broken_inventory_changes_nothing_and_is_told_once(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.fleet.INVENTORY_LOOK_S", 0.001)
    async with NodeFleet(bed.context_of(ONE)) as fleet:
        await up(fleet, "gpu1")
        bed.write_inventory("[nodes.gpu1\n")
        async with asyncio.timeout(PATIENCE_S):
            while not bed.notices:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert names(fleet) == ["gpu1", "local"]
    (notice,) = bed.notices
    assert "line 1" in notice
    assert "stays in use" in notice


async def test_a_selector_holds_a_part_of_the_nodes(bed: Bed) -> None:
    async with NodeFleet(bed.context_of(TWO), "@fast") as fleet:
        assert names(fleet) == ["gpu2"]
        bed.write_inventory(ONE)
        fleet.reload()
        assert names(fleet) == ["gpu2"]
    assert "no node has the tag 'fast'" in bed.notices[-1]


async def test_a_start_says_what_the_model_has_to_be_able_to_do(bed: Bed) -> None:
    async with NodeFleet(bed.context("gpu1")) as fleet:
        await up(fleet, "gpu1")
        node = bed.nodes["gpu1"]
        node.models = (replace(model_info(), meta=replace(model_info().meta, architecture="bert")),)
        with pytest.raises(UsageError, match="only embeds texts") as caught:
            await fleet.start_worker("gpu1", replace(MODEL, ability="chat"))
        assert caught.value.details["able"] == ["embeddings"]
        assert node.spawned == []
