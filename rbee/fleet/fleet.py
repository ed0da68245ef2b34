"""The use cases behind `rbee workers`, `models`, `hive` and `logs`: over one node or all of them, always live."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from rbee import audit
from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Emit, Event, Notice
from rbee.context import Context
from rbee.infer.load_options import worker_options
from rbee.infer.request import InferRequest
from rbee.inventory import Node
from rbee.models.provision import ensure_model, push_file, push_model
from rbee.models.ref import parse_ref
from rbee.node.hive_client import WorkerClient
from rbee.node.hung_hive import does_not_answer, end_by_signals
from rbee.node.probe import probe
from rbee.node.session import NODE_DEADLINE_S, PerNode, each, reach, running_hive
from rbee.node.socket_http import NonsenseError, SilenceError
from rbee.registry import Changes, Registry
from rbee.setup.attach import Attached, attach
from rbee.transport.connection import Connection, quote
from rbee_remote.protocol import (
    ErrorCode,
    HiveInfo,
    ModelInfo,
    ModelNeeds,
    NeedsRequest,
    StopRequest,
    WorkerInfo,
    WorkerStatus,
)

#: What each step of a kill ladder gets where nobody says.
PATIENCE_S = StopRequest().patience_s


def _silent(_: Event) -> None:
    """Lists over many nodes show rows, not the progress of each."""


async def workers(context: Context, nodes: Sequence[Node]) -> list[PerNode[list[WorkerInfo]]]:
    """The workers of each node, as its hive says now; the registry is brought up to date on the way."""
    with context.open_registry() as registry:

        async def ask(node: Node) -> list[WorkerInfo]:
            found, _ = await _synced(node, context, registry)
            return found

        return await each(nodes, ask)


async def sync(
    context: Context, nodes: Sequence[Node], *, deadline_s: float = NODE_DEADLINE_S
) -> list[PerNode[Changes]]:
    """Make the registry's rows of each node what its hive says now; a node that does not answer keeps its rows.

    deadline_s: of each node.
    """
    with context.open_registry() as registry:

        async def ask(node: Node) -> Changes:
            _, changes = await _synced(node, context, registry)
            return changes

        return await each(nodes, ask, deadline_s=deadline_s)


async def rebuild(context: Context, emit: Emit) -> None:
    """Fill a registry that lost its rows: all nodes are asked at once, and those that do not answer soon are named."""
    answers = await sync(replace(context, ask=None, ask_passphrase=None), context.inventory.select("all"), deadline_s=5)
    found = sum(len(answer.value.added) for answer in answers if answer.value)
    silent = [answer.node.name for answer in answers if answer.error]
    text = f"the registry was rebuilt from the hives: {found} worker{'' if found == 1 else 's'} found"
    if silent:
        text += f"; no answer from {', '.join(silent)}: `rbee workers sync` asks again"
    emit(Notice(text))


async def _synced(node: Node, context: Context, registry: Registry) -> tuple[list[WorkerInfo], Changes]:
    """What the hive of a node says, and what that changed in the registry. No hive has no workers."""
    async with running_hive(node, context, registry, _silent) as hive:
        asked_at = time.time()
        if not hive:
            return [], registry.sync_node(node.name, [], asked_at=asked_at)
        found, info = await hive.client.workers(), hive.info
        return found, registry.sync_node(
            node.name, found, hive_instance=info.instance, payload=info.payload, asked_at=asked_at
        )


async def find_worker(context: Context, nodes: Sequence[Node], prefix: str) -> tuple[Node, WorkerInfo]:
    """The one worker whose id begins with `prefix`. Raises UsageError for none and for several."""
    asked = await workers(context, nodes)
    found = [(row.node, info) for row in asked for info in row.value or [] if info.id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{len(found)} workers begin with {prefix!r}", hint="give more of the id")
    silent = [row.node.name for row in asked if row.error]
    raise UsageError(
        f"no worker begins with {prefix!r}",
        hint=f"these nodes did not answer: {', '.join(silent)}" if silent else "`rbee workers list` shows all",
    )


async def worker_health(
    context: Context, nodes: Sequence[Node]
) -> list[PerNode[list[tuple[WorkerInfo, WorkerStatus | None]]]]:
    """What each worker itself says; None for one that its hive lists but that does not answer."""
    with context.open_registry() as registry:

        async def ask(node: Node) -> list[tuple[WorkerInfo, WorkerStatus | None]]:
            async with running_hive(node, context, registry, _silent) as hive:
                if not hive:
                    return []
                infos = await hive.client.workers()
                return [(info, await _health(hive.connection, info, context)) for info in infos]

        return await each(nodes, ask)


async def _health(connection: Connection, info: WorkerInfo, context: Context) -> WorkerStatus | None:
    worker = WorkerClient(connection, info.socket, worker_id=info.id, keeper_id=context.keeper_id, secret=info.secret)
    try:
        return await worker.health()
    except NodeError:
        return None


async def stop_worker(
    context: Context, node: Node, worker_id: str, *, drain: bool, emit: Emit, patience_s: float = PATIENCE_S
) -> WorkerInfo:
    """Stop a worker; returns when its process is gone. drain: running requests finish first. patience_s: of each step
    of the kill ladder."""
    recorded = audit.recorded(context.settings, "worker.stop", emit=emit, node=node.name, worker=worker_id)
    with recorded as details, context.open_registry() as registry:
        async with running_hive(node, context, registry, emit) as hive:
            if not hive:
                raise NodeError(ErrorCode.WORKER_GONE, f"no hive runs on {node.name}", hint="nothing to stop")
            info = await hive.client.stop_worker(worker_id, StopRequest(drain=drain, patience_s=patience_s))
        registry.drop(node.name, worker_id)
        details["model"] = info.model
        return info


async def hives(context: Context, nodes: Sequence[Node]) -> list[PerNode[HiveInfo | None]]:
    """The hive of each node, None where none runs."""
    with context.open_registry() as registry:

        async def ask(node: Node) -> HiveInfo | None:
            async with running_hive(node, context, registry, _silent) as hive:
                return hive.info if hive else None

        return await each(nodes, ask)


async def stop_hive(context: Context, node: Node, *, drain: bool, emit: Emit, patience_s: float = PATIENCE_S) -> bool:
    """Stop a node's workers and its hive; whether one ran.

    drain: running requests finish first, and a hive that does not answer is left alone: ConnectError. Else it is ended
    by signals; NodeError when even that does nothing. patience_s: of each step of the kill ladder.
    """
    recorded = audit.recorded(context.settings, "hive.stop", emit=emit, node=node.name)
    with recorded as details, context.open_registry() as registry:
        try:
            async with running_hive(node, context, registry, emit) as hive:
                stopped = await hive.client.stop(StopRequest(drain=drain, patience_s=patience_s)) if hive else None
            details["workers"] = stopped.workers if stopped else None
            ran = stopped is not None
        except (SilenceError, NonsenseError) as error:
            if drain:
                raise does_not_answer(node.name, error) from error
            await end_by_signals(node, context, registry, emit, patience_s=patience_s)
            details["by"], ran = "signals", True
        registry.sync_node(node.name, [])
        return ran


async def models(context: Context, nodes: Sequence[Node]) -> list[PerNode[list[ModelInfo]]]:
    """The catalog of each node; a node that rbee never set up has none, and is left as it is."""
    with context.open_registry() as registry:

        async def ask(node: Node) -> list[ModelInfo]:
            async with reach(node, context, registry, _silent) as connection:
                found = await probe(connection, node)
                if not (found.runtimes and found.payloads):
                    return []
                return await (await attach(connection, node, context, registry, _silent)).hive.models()

        return await each(nodes, ask)


async def model_needs(
    context: Context, nodes: Sequence[Node], ref: str, asked: InferRequest, *, slots: tuple[int, ...]
) -> list[PerNode[ModelNeeds | None]]:
    """What a model is, and what it needs, on each node that has it; None where it is not.

    asked: how it would be loaded, and with ctx for which context alone. slots: at which counts, none for some.
    A node that rbee never set up is left as it is. Raises UsageError for a ref that is none.
    """
    wanted = parse_ref(ref)

    with context.open_registry() as registry:

        async def ask(node: Node) -> ModelNeeds | None:
            async with reach(node, context, registry, _silent) as connection:
                found = await probe(connection, node)
                if not (found.runtimes and found.payloads):
                    return None
                hive = (await attach(connection, node, context, registry, _silent)).hive
                options = worker_options(replace(asked, ctx=None, slots=None), replace(node, ctx=None, slots=None))
                ctx = (asked.ctx,) if asked.ctx else ()
                try:
                    request = NeedsRequest(wanted.canonical, options, ctx=ctx, slots=slots, sandbox=node.sandbox)
                    return await hive.needs(request)
                except NodeError as error:
                    if error.code is not ErrorCode.MODEL_NOT_FOUND:
                        raise
                    return None

        return await each(nodes, ask)


async def pull(context: Context, node: Node, ref: str, emit: Emit) -> ModelInfo:
    """Have a model on a node: downloaded there, or pushed when the node has no way out."""
    wanted = parse_ref(ref)  # before anything is put on the node for its sake
    recorded = audit.recorded(context.settings, "model.pull", emit=emit, node=node.name, model=wanted.canonical)
    with recorded as details:
        async with _attached(context, node, emit) as (connection, attached):
            info = await ensure_model(attached, connection, node, wanted, context, emit)
        details["bytes"] = info.size
        return info


async def push(context: Context, node: Node, model: Path | str, emit: Emit) -> ModelInfo:
    """Send a model from here: a file of this machine, or what a ref names, downloaded here first."""
    wanted = model if isinstance(model, Path) else parse_ref(model)
    name = str(wanted) if isinstance(wanted, Path) else wanted.canonical
    with audit.recorded(context.settings, "model.push", emit=emit, node=node.name, model=name) as details:
        async with _attached(context, node, emit) as (connection, attached):
            if isinstance(wanted, Path):
                info = await push_file(attached, connection, node, wanted, context, emit)
            else:
                info = await push_model(attached, connection, node, wanted, context, emit)
        details["bytes"] = info.size
        return info


async def remove_model(context: Context, node: Node, ref: str, emit: Emit) -> ModelInfo:
    """Take a model out of a node's catalog, and off its disk where rbee put it there."""
    wanted = parse_ref(ref)
    with audit.recorded(context.settings, "model.rm", emit=emit, node=node.name, model=wanted.canonical):
        async with _attached(context, node, emit) as (_, attached):
            return await attached.hive.remove(wanted.canonical)


@asynccontextmanager
async def _attached(context: Context, node: Node, emit: Emit) -> AsyncIterator[tuple[Connection, Attached]]:
    """A node that is ready to work; what it lacks is put there."""
    with context.open_registry() as registry:
        async with reach(node, context, registry, emit) as connection:
            yield connection, await attach(connection, node, context, registry, emit)


async def logs(
    context: Context,
    node: Node,
    *,
    worker: str | None,
    lines: int,
    follow: bool,
    write: Callable[[bytes], None],
    emit: Emit,
) -> None:
    """Hand the last lines of the hive's log, or of a worker's, to `write`; with `follow` until canceled.

    worker: an id or its beginning. Raises UsageError for a malformed one, NodeError when there is no such log.
    """
    if worker is not None and not re.fullmatch(r"[0-9a-f]{1,16}", worker):
        raise UsageError(f"{worker!r} is no worker id", hint="`rbee workers list` shows the ids")
    with context.open_registry() as registry:
        async with reach(node, context, registry, emit) as connection:
            home = (await probe(connection, node)).home
            name = f"worker-{worker}*.log" if worker else "hive.log"
            script = (
                f"cd {quote(f'{home}/log')} 2>/dev/null || exit 0\n"
                f"set -- {name}\n"
                '[ -f "$1" ] || exit 0\n'
                "echo found\n"
                f'exec tail -n {lines:d} {"-f" if follow else ""} "$1"'
            )
            async with connection.stream_script(script) as output:
                found = False
                async for line in output:
                    if found:
                        write(line + b"\n")
                    found = True
            if not found:
                what = f"of a worker {worker}" if worker else "of a hive"
                raise NodeError(
                    ErrorCode.WORKER_GONE,
                    f"there is no log {what} on {node.name}",
                    hint="`rbee workers list` shows the ids" if worker else "the first `rbee infer` starts one there",
                )
