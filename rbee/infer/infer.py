"""`rbee infer`: from the request to the last token, in eight phases.

`_on_new_worker` is the whole way; `_on_known_worker` is the short one that a warm worker allows.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee import audit
from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Emit, Finished, Notice, Phase, Timings
from rbee.context import Context
from rbee.infer.answer import Answer, Draft, Way, answer
from rbee.infer.load_options import is_for_the_hive, worker_options
from rbee.infer.loading import until_ready
from rbee.infer.phases import PhaseClock
from rbee.infer.placement import Reuse, place
from rbee.infer.request import InferRequest
from rbee.infer.session import Trip
from rbee.infer.worker_status import fate_of
from rbee.inventory import Node
from rbee.node.hive_client import HiveClient, WorkerClient, hive_at
from rbee.transport.connection import Connection
from rbee_remote.protocol import (
    ErrorCode,
    GenerateRequest,
    ModelInfo,
    SpawnRequest,
    WorkerInfo,
    WorkerState,
)

if TYPE_CHECKING:
    from rbee.setup.attach import Attached

#: How often phases 2 to 7 begin again after the connection broke: a large upload over a bad line goes on that often.
RECONNECTS = 5


async def infer(request: InferRequest, context: Context, emit: Emit) -> Finished:
    """Answer one prompt on some node; phases, progress and tokens go to `emit` as they come.

    Raises RbeeError for all that a user can meet. Canceled (Ctrl-C), it stops what it started.
    """
    async with AsyncExitStack() as open_things:
        registry = open_things.enter_context(context.open_registry())
        deadline = Deadline.after(request.timeout_s)
        trip = Trip(request, context, emit, PhaseClock(emit), registry, open_things, deadline)
        try:
            async with asyncio.timeout(deadline.left()):
                finished = await _infer(trip)
        except TimeoutError as error:
            raise _deadline_exceeded(trip) from error
        if finished.finish_reason == "deadline":
            raise _deadline_exceeded(trip)
    emit(finished)
    return finished


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A worker that serves, and the way to it."""

    connection: Connection
    attached: Attached
    model: ModelInfo
    info: WorkerInfo

    def client(self, keeper_id: str) -> WorkerClient:
        info = self.info
        return WorkerClient(self.connection, info.socket, worker_id=info.id, keeper_id=keeper_id, secret=info.secret)


async def _infer(trip: Trip) -> Finished:
    nodes = trip.context.inventory.select(trip.request.node)
    with trip.clock.phase(Phase.REGISTRY, "workers.db") as outcome:
        rows, request = trip.registry.fresh_rows(), trip.request
        reuse = not is_for_the_hive(request)
        trip.ref(nodes[0])  # a ref that is none is told of before anything is touched
        chosen = place(
            nodes, rows, lambda node: trip.ref(node).canonical, ctx=request.ctx, slots=request.slots, reuse=reuse
        )
        outcome.text = (
            f"{chosen.row.model} runs on {chosen.node.name}" if isinstance(chosen, Reuse) else "no warm worker"
        )
    known = chosen if isinstance(chosen, Reuse) else None
    remaining = [chosen.node, *(node for node in nodes if node != chosen.node)]
    while True:
        node = remaining.pop(0)
        try:
            return await _on_node(trip, node, known)
        except (NodeError, ConnectError) as error:
            if not remaining or not trip.may_go_on(error):
                raise
            trip.emit(Notice(f"leaving out {node.name}: {error.message}"))
            known = None


async def _on_node(trip: Trip, node: Node, known: Reuse | None) -> Finished:
    """On the worker that is known, else phases 2 to 8: twice where the worker or its hive ends on the way."""
    if known and (finished := await _on_known_worker(trip, known)):
        return finished
    try:
        return await _on_new_worker(trip, node)
    except NodeError as error:
        if error.code is not ErrorCode.WORKER_GONE:
            raise
        trip.emit(Notice(f"{error.message}; asking {node.name} again"))
        return await _on_new_worker(trip, node)


async def _on_known_worker(trip: Trip, known: Reuse) -> Finished | None:
    """Phase 8 at once; None when the worker turns out to be gone, and phase 2 has to follow."""
    connection = await trip.connect(known.node)
    row = known.row
    keeper_id = trip.context.keeper_id
    worker = WorkerClient(connection, row.socket, worker_id=row.worker_id, keeper_id=keeper_id, secret=row.secret)
    run_dir = row.socket.rpartition("/")[0]  # hive and workers share it
    hive = hive_at(connection, run_dir, keeper_id=keeper_id)
    try:
        return await _inference(trip, known.node, worker, hive, row.worker_id, row.model)
    except NodeError as error:
        if error.code is not ErrorCode.WORKER_GONE:
            raise
        trip.registry.drop(known.node.name, row.worker_id)
        return None


async def _on_new_worker(trip: Trip, node: Node) -> Finished:
    """Phases 2 to 8. The hive may know a worker that the registry did not: then 3 to 7 are over at once."""
    ready = await ready_worker(trip, node)
    worker = ready.client(trip.context.keeper_id)
    return await _inference(trip, node, worker, ready.attached.hive, ready.info.id, ready.info.model)


async def ready_worker(trip: Trip, node: Node) -> ReadyWorker:
    """Phases 2 to 7: a worker for the trip's model that serves. `rbee bench` goes this far, and measures it.

    Where the connection breaks they begin again over another one: each finds what it has done already.
    """
    for _ in range(RECONNECTS):
        try:
            return await _phases_2_to_7(trip, node)
        except ConnectError as error:
            if not await trip.reconnected(node, error):
                raise
    return await _phases_2_to_7(trip, node)


async def _phases_2_to_7(trip: Trip, node: Node) -> ReadyWorker:
    from rbee.audit.witness import place_of
    from rbee.models.provision import ensure_model
    from rbee.setup.attach import attach  # none of it is needed for a warm worker, which is to answer at once

    clock, context = trip.clock, trip.context
    with clock.phase(Phase.NODE, node.name) as outcome:
        connection = await trip.connect(node)
        attached = trip.attached = await attach(connection, node, context, trip.registry, trip.emit)
        outcome.text = f"{node.name}: {attached.probe.summary}"

    ref = trip.ref(node)
    with clock.phase(Phase.MODEL, ref.canonical) as outcome:
        model = await ensure_model(attached, connection, node, ref, context, trip.emit)
        outcome.text = f"{model.model} is on {node.name} ({model.size / 1e6:,.0f} MB)"
    spawn = _spawn_request(trip, node, model.model)

    with clock.phase(Phase.FIT, "memory") as outcome:
        fit = await attached.hive.preflight(spawn)
        outcome.text = f"needs {fit.needed_mb:,} MB of {fit.available_mb:,} MB {fit.memory.upper()} ({fit.device})"

    with clock.phase(Phase.START, "starting a worker") as outcome:
        info = await attached.hive.ensure_worker(spawn)
        outcome.text = f"worker {info.id[:8]}"
    if info.state in (WorkerState.STARTING, WorkerState.LOADING) and info.id not in trip.started:
        trip.started.add(info.id)  # where the phases begin again it is the same worker that still loads
        start = {"node": node.name, "worker": info.id, "model": info.model}
        if info.audit_head:
            start |= {"place": place_of(node, attached.probe.home), "node_head": info.audit_head}
        audit.record(context.settings, "worker.start", emit=trip.emit, **start)

    with clock.phase(Phase.REGISTER, "workers.db"):
        trip.record(node, info, attached)

    with clock.phase(Phase.READY, "loading the model") as outcome:
        info = await until_ready(node.name, attached.hive, info, trip.deadline, trip.emit)
        trip.record(node, info, attached)
        outcome.text = f"{info.slots_free} of {info.slots} slots free, {info.ctx:,} tokens of context each"

    return ReadyWorker(connection, attached, model, info)


def _spawn_request(trip: Trip, node: Node, model: str) -> SpawnRequest:
    keep_alive_s = trip.request.keep_alive_s
    return SpawnRequest(
        model=model,
        options=worker_options(trip.request, node),
        keep_alive_s=node.keep_alive_s if keep_alive_s is None else keep_alive_s,
        max_workers=node.max_workers,
        timeout_s=trip.deadline.left(),
        audit_head=audit.head(trip.context.settings),
        env=dict(node.env),
        sandbox=node.sandbox,
    )


async def _inference(
    trip: Trip, node: Node, worker: WorkerClient, hive: HiveClient, worker_id: str, model: str
) -> Finished:
    request = trip.request
    generate = GenerateRequest(
        request_id=uuid.uuid4().hex,
        messages=request.messages,
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop=request.stop,
        keep_alive_s=request.keep_alive_s,
    )
    draft = trip.draft = Draft.of(trip.context.settings.log, generate.request_id)
    way = Way(
        worker=worker,
        link=await trip.connect(node),
        explain=lambda: fate_of(hive, worker_id),
        draft=draft,
        deadline=trip.deadline,
    )
    with trip.clock.phase(Phase.INFERENCE, model) as outcome:
        result = await answer(way, generate, emit=trip.emit, retries=request.retry)
        tokens = result.usage.completion_tokens
        outcome.text = f"{tokens} token{'' if tokens == 1 else 's'}"
    trip.registry.seen(node.name, worker_id)
    timings = _timings(trip, node, result)
    return Finished(result.finish_reason, result.usage, timings, node.name, model, worker_id)


def _timings(trip: Trip, node: Node, result: Answer) -> Timings:
    seconds, attached = trip.clock.seconds, trip.attached
    connected = trip.connections[node.name].timings
    load = sum(seconds[phase] for phase in (Phase.START, Phase.REGISTER, Phase.READY)) if attached else None
    return Timings(
        connect_s=connected.connect_s,
        authenticate_s=connected.authenticate_s,
        probe_s=attached.probe_s if attached else None,
        bootstrap_s=attached.bootstrap_s if attached else None,
        provision_s=seconds.get(Phase.MODEL),
        load_s=load,
        first_token_s=result.first_token_s,
        total_s=trip.clock.elapsed(),
        tokens_per_s=result.tokens_per_s,
    )


def _deadline_exceeded(trip: Trip) -> NodeError:
    """What was generated by then is saved."""
    phase = trip.clock.current
    return NodeError(
        ErrorCode.DEADLINE_EXCEEDED,
        f"the deadline of {trip.request.timeout_s:g} s passed in phase {phase.value} ({phase.name.lower()})",
        hint="give it more with `--timeout`",
        details=trip.draft.save() if trip.draft else {},
    )
