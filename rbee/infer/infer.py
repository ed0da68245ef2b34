"""`rbee infer`: from the request to the last token, in eight phases. Read from the top.

A warm worker, which the registry knows, needs phases 1 and 8 alone; else `_phases_2_to_7` makes one ready.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rbee import audit
from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Finished, Notice, Phase, Timings
from rbee.base.retries import RECONNECTS, WORKERS_TRIED
from rbee.context import Context
from rbee.infer.answer import Endpoint, UnansweredError, answer
from rbee.infer.loading import until_ready
from rbee.infer.partial import Answer, PartialAnswer
from rbee.infer.placement import Reuse, Spawn, place
from rbee.infer.request import InferRequest
from rbee.infer.session import InferSession
from rbee.infer.worker_status import hive_report
from rbee.inventory import Node
from rbee.node.session import NodeSession
from rbee.registry import WorkerRow
from rbee_remote.protocol import (
    ChatOptions,
    ErrorCode,
    GenerateRequest,
    LoadOptions,
    ModelInfo,
    SpawnRequest,
    WorkerInfo,
    WorkerState,
)

if TYPE_CHECKING:
    from rbee.models.store import Stored

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A worker that serves. session: with its node, which is attached."""

    session: NodeSession
    model: ModelInfo
    info: WorkerInfo


class _Worker(NamedTuple):
    """What phase 8 needs to know of a worker, whether the registry or the hive told."""

    id: str
    model: str
    socket: str
    secret: str


async def infer(request: InferRequest, context: Context) -> Finished:
    """Answer one prompt on some node; phases, progress and tokens are reported as they come.

    Raises RbeeError for all that a user can meet. Canceled (Ctrl-C), it stops what it started.
    """
    with context.open_registry() as registry:
        async with InferSession(request, context, registry) as session:
            finished = await on_some_node(session, _on_node)
    context.emit(finished)
    return finished


async def on_some_node(
    session: InferSession, work: Callable[[InferSession, Node, WorkerRow | None], Awaitable[T]]
) -> T:
    """Done on the node that phase 1 chooses; where that one cannot, and the user named none, on the next. work: gets
    the row of a warm worker, if phase 1 found one. Nodes whose model cannot do what is asked are left out, as far as
    its ref tells; where there is no other, it is refused."""
    request, inventory = session.request, session.context.inventory
    nodes = session.able(inventory.select(request.node) if request.node else inventory.among(request.among))
    chosen = _choose(session, nodes)
    row = chosen.row if isinstance(chosen, Reuse) else None
    remaining = [chosen.node, *(node for node in nodes if node != chosen.node)]
    if request.wait_for_gpu and row is None and len(remaining) > 1:
        from rbee.infer.gpu_nodes import gpus_first

        remaining = await gpus_first(session, remaining)
    while True:
        node = remaining.pop(0)
        try:
            return await work(session, node, row)
        except (NodeError, ConnectError) as error:
            if not remaining or not session.may_go_on(error):
                raise
            session.emit(Notice(f"skipping {node.name}: {error.message}"))
            row = None


async def _on_node(session: InferSession, node: Node, row: WorkerRow | None) -> Finished:
    """On the worker that is known, else phases 2 to 8: again where a worker, or its hive, ends before it answers."""
    session.chat(node)  # a template that cannot be read is refused before anything is touched
    for left in reversed(range(WORKERS_TRIED)):
        try:
            if row and (finished := await _on_known_worker(session, node, row)):
                return finished
            row = None
            return await _on_new_worker(session, node)
        except NodeError as error:
            if not left or not (isinstance(error, UnansweredError) or error.code is ErrorCode.WORKER_GONE):
                raise
            row = None
            session.emit(Notice(f"{error.message}; asking {node.name} again"))
    raise AssertionError("the last try returns or raises")


async def _on_known_worker(session: InferSession, node: Node, row: WorkerRow) -> Finished | None:
    """Phase 8 at once; None when the worker turns out to be gone, and phase 2 has to follow."""
    async with session.in_time():
        on = await session.on(node)
    try:
        return await _inference(session, on, _Worker(row.worker_id, row.model, row.socket, row.secret))
    except NodeError as error:
        if error.code in (ErrorCode.WORKER_GONE, ErrorCode.WORKER_CRASHED):
            session.registry.drop(node.name, row.worker_id)
        if error.code is not ErrorCode.WORKER_GONE:
            raise
        return None


async def _on_new_worker(session: InferSession, node: Node) -> Finished:
    """Phases 2 to 8. The hive may know a worker that the registry did not: then 3 to 7 are over at once."""
    ready = await ready_worker(session, node)
    info = ready.info
    return await _inference(session, ready.session, _Worker(info.id, info.model, info.socket, info.secret))


async def ready_worker(session: InferSession, node: Node) -> ReadyWorker:
    """Phases 2 to 7: a worker for the request's model that serves. `rbee bench` goes this far, and measures it.

    Where the connection breaks they begin again over another one: each finds what it has done already.
    """
    async with session.in_time():
        for _ in range(RECONNECTS):
            try:
                return await _phases_2_to_7(session, node)
            except ConnectError as error:
                await session.reconnect(node, error)
        return await _phases_2_to_7(session, node)


async def _phases_2_to_7(session: InferSession, node: Node) -> ReadyWorker:
    on, placed = await _attach(session, node)
    model, load = await _provide_model(session, on, placed)
    spawn = _spawn_request(session, node, model, load)
    await _check_fit(session, on, spawn)
    info = await _start_worker(session, on, spawn)
    _register(session, on, info)
    info = await _load(session, on, info)
    return ReadyWorker(on, model, info)


def _choose(session: InferSession, nodes: Sequence[Node]) -> Reuse | Spawn:
    """Phase 1: where a warm worker is known, else where one is to be had."""
    with session.clock.phase(Phase.REGISTRY, "workers.db") as outcome:
        rows = session.registry.fresh_rows()
        session.ref(nodes[0])  # an invalid model ref is rejected before anything is touched
        wait = session.request.wait_for_gpu
        chosen = place(nodes, rows, lambda node: session.ref(node).canonical, session.request.load, wait_for_gpu=wait)
        outcome.text = (
            f"{chosen.row.model} runs on {chosen.node.name}" if isinstance(chosen, Reuse) else "no warm worker"
        )
    return chosen


async def _attach(session: InferSession, node: Node) -> tuple[NodeSession, Stored | None]:
    """Phase 2: the node is connected to and set up, and its hive runs. On one that rbee never used, the model may have
    come along already."""
    from rbee.models.provision import Ahead
    from rbee.setup.attach import attach  # of phases 2 to 7 nothing is imported for a warm worker

    with session.clock.phase(Phase.NODE, node.name) as outcome:
        on = await session.on(node)
        ahead = Ahead(on, session.ref(node), session.ability(node))
        attached = await attach(on, ahead.bring, wait_for_gpu=session.request.wait_for_gpu)
        outcome.text = f"{node.name}: {attached.probe.summary}"
    return on, ahead.placed


async def _provide_model(
    session: InferSession, on: NodeSession, placed: Stored | None
) -> tuple[ModelInfo, LoadOptions]:
    """Phase 3: the model is on the node, and in its catalog; so is what it is to be loaded with."""
    from rbee.models.adapters import with_adapters
    from rbee.models.provision import ensure_model

    ref = session.ref(on.node)
    with session.clock.phase(Phase.MODEL, ref.canonical) as outcome:
        model = await ensure_model(on, ref, placed=placed, ability=session.ability(on.node))
        load = await with_adapters(on, await session.load(on, model))
        outcome.text = f"{model.model} is on {on.node.name} ({model.size / 1e6:,.0f} MB)"
    return model, load


def _spawn_request(session: InferSession, node: Node, model: ModelInfo, load: LoadOptions) -> SpawnRequest:
    keep_alive_s = session.request.keep_alive_s
    return SpawnRequest(
        model=model.model,
        options=load.for_worker(node.backend),
        keep_alive_s=node.keep_alive_s if keep_alive_s is None else keep_alive_s,
        max_workers=node.max_workers,
        timeout_s=session.deadline.left(),
        audit_head=audit.head(session.context.settings),
        env=dict(node.env),
        sandbox=node.sandbox,
    )


async def _check_fit(session: InferSession, on: NodeSession, spawn: SpawnRequest) -> None:
    """Phase 4: the node has the memory for it."""
    with session.clock.phase(Phase.FIT, "memory") as outcome:
        fit = await on.attached.hive.preflight(spawn)
        outcome.text = f"needs {fit.needed_mb:,} MB of {fit.available_mb:,} MB {fit.memory.upper()} ({fit.device})"


async def _start_worker(session: InferSession, on: NodeSession, spawn: SpawnRequest) -> WorkerInfo:
    """Phase 5: the hive has a worker for it, which may be loading."""
    from rbee.audit.cross_check import place_of

    with session.clock.phase(Phase.START, "starting a worker") as outcome:
        info = await on.attached.hive.ensure_worker(spawn)
        outcome.text = f"worker {info.id[:8]}"
    if info.state in (WorkerState.STARTING, WorkerState.LOADING) and info.id not in session.started:
        session.started.add(info.id)  # where the phases begin again it is the same worker that still loads
        start = {"node": on.node.name, "worker": info.id, "model": info.model}
        if info.audit_head:
            start |= {"place": place_of(on.node, on.attached.probe.home), "node_head": info.audit_head}
        audit.record(session.context.settings, "worker.start", emit=session.emit, **start)
    return info


def _register(session: InferSession, on: NodeSession, info: WorkerInfo) -> None:
    """Phase 6: the registry knows the worker."""
    with session.clock.phase(Phase.REGISTER, "workers.db"):
        on.record(info)


async def _load(session: InferSession, on: NodeSession, info: WorkerInfo) -> WorkerInfo:
    """Phase 7: the worker serves."""
    with session.clock.phase(Phase.READY, "loading the model") as outcome:
        info = await until_ready(on.node.name, on.attached.hive, info, session.deadline, session.emit)
        on.record(info)
        outcome.text = f"{info.slots_free} of {info.slots} slots free, {info.ctx:,} tokens of context each"
    return info


async def _inference(session: InferSession, on: NodeSession, worker: _Worker) -> Finished:
    """Phase 8: the answer."""
    generate = _generate_request(session.request, session.chat(on.node))
    begun = generate.messages[-1].content if generate.chat.continue_final else ""
    folder, is_saved = session.context.settings.log, session.request.saves_partial
    partial = PartialAnswer.of(folder, generate.request_id, begun, is_saved=is_saved)
    hive = on.hive_at(worker.socket.rpartition("/")[0])  # hive and workers share a folder
    endpoint = Endpoint(
        worker=on.worker_at(worker.socket, worker.id, worker.secret),
        connection=on.connection,
        explain=lambda: hive_report(hive, worker.id),
        deadline=session.deadline,
    )
    async with session.in_time(partial.save):
        with session.clock.phase(Phase.INFERENCE, worker.model) as outcome:
            result = await answer(endpoint, generate, partial, emit=session.emit, retries=session.request.retry)
            tokens = result.usage.completion_tokens
            outcome.text = f"{tokens} token{'' if tokens == 1 else 's'}"
    session.registry.seen(on.node.name, worker.id)
    if result.finish_reason == "deadline":  # by the worker's clock
        raise session.deadline_exceeded(partial.save())
    timings = _timings(session, on, result)
    return Finished(result.finish_reason, result.usage, timings, on.node.name, worker.model, worker.id)


def _generate_request(request: InferRequest, chat: ChatOptions) -> GenerateRequest:
    return GenerateRequest(
        request_id=uuid.uuid4().hex,
        messages=request.messages,
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop=request.stop,
        keep_alive_s=request.keep_alive_s,
        chat=chat,
        tools=request.tools,
    )


def _timings(session: InferSession, on: NodeSession, result: Answer) -> Timings:
    seconds, connected = session.clock.seconds, on.connection.timings
    attached = on.attached if on.is_attached else None
    load = sum(seconds[phase] for phase in (Phase.START, Phase.REGISTER, Phase.READY)) if attached else None
    return Timings(
        connect_s=connected.connect_s,
        authenticate_s=connected.authenticate_s,
        probe_s=attached.probe_s if attached else None,
        bootstrap_s=attached.bootstrap_s if attached else None,
        provision_s=seconds.get(Phase.MODEL),
        load_s=load,
        first_token_s=result.first_token_s,
        total_s=session.clock.elapsed(),
        tokens_per_s=result.tokens_per_s,
    )
