"""`rbee bench`: how fast nodes compute a model, all of them at once, in the terms of llama-bench.

Each node gets as far as `infer.ready_worker` takes it, then its worker measures itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee import audit
from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Emit, Event, Notice, Progress, Retry
from rbee.context import Context
from rbee.infer.infer import ready_worker
from rbee.infer.request import InferRequest
from rbee.infer.session import InferSession
from rbee.inventory import Node
from rbee.node.hive_client import WorkerClient
from rbee.node.session import PerNode, each
from rbee_remote.protocol import (
    BenchProgress,
    BenchRequest,
    BenchResult,
    BenchTest,
    ErrorCode,
    ModelInfo,
    WorkerInfo,
)
from rbee_remote.protocol.load_options import AUTO_CTX, DEFAULT_CTX


@dataclass(frozen=True, slots=True)
class Bench:
    """What came out on one node."""

    worker: WorkerInfo
    model: ModelInfo
    result: BenchResult


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second: mean and sample standard deviation over the repetitions, as llama-bench has them."""

    mean: float
    deviation: float


def speed(test: BenchTest) -> Speed:
    rates = [test.tokens / seconds for seconds in test.seconds]
    return Speed(statistics.fmean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0)


async def bench(
    nodes: Sequence[Node], request: BenchRequest, asked: InferRequest, context: Context
) -> list[PerNode[Bench]]:
    """Measure the nodes at once, each on its own machine; one that fails is a value in the result.

    asked: which model, and how to load it. Without a ctx, the node's, or what the tests need.
    Raises UsageError for a ctx that does not hold the tests. Canceled (Ctrl-C), the workers stop within a step.
    """
    needed = max(request.prompt_tokens, request.generated_tokens)
    if (given := asked.load.ctx) and given < needed:
        raise UsageError(f"a context of {given} tokens does not hold {needed}", hint="leave out --ctx, or raise it")
    with context.open_registry() as registry:

        async def ask(node: Node) -> Bench:
            ctx = context_size(asked.load.over(node.load).ctx, needed)
            wanted = replace(asked, load=replace(asked.load, ctx=ctx))
            own = context if len(nodes) == 1 else replace(context, emit=_naming(node, context.emit))
            with audit.recorded(context.settings, "bench", emit=own.emit, node=node.name) as details:
                async with InferSession(wanted, own, registry) as session:
                    result = await _on_node(session, node, request)
                details |= {"model": result.model.model, "worker": result.worker.id}
                return result

        return await each(nodes, ask, deadline_s=None)


def context_size(asked: int | None, needed: int) -> int | None:
    """What to load the model with: no more than was asked for where that will do, so that a warm worker serves."""
    if asked == AUTO_CTX:
        return asked
    return needed if needed > (asked or DEFAULT_CTX) else asked


async def _on_node(session: InferSession, node: Node, request: BenchRequest) -> Bench:
    ready = await ready_worker(session, node)
    info = ready.info
    result = await measure(ready.session.worker_at(info.socket, info.id, info.secret), request, session.emit)
    session.registry.seen(node.name, info.id)
    return Bench(info, ready.model, result)


async def measure(worker: WorkerClient, request: BenchRequest, emit: Emit) -> BenchResult:
    """Have a worker measure itself, reporting how far it is. Raises NodeError IN_USE, USAGE, WORKER_CRASHED."""
    try:
        async with worker.bench(request) as events:
            async for event in events:
                if isinstance(event, BenchResult):
                    return event
                _report(event, emit)
    except NodeError as error:
        if error.code is not ErrorCode.WORKER_GONE:
            raise
    raise NodeError(
        ErrorCode.WORKER_CRASHED,
        "the worker or the connection to it was lost during the measurement",
        hint="`rbee logs NODE --worker ID` shows its last lines",
    )


def _report(progress: BenchProgress, emit: Emit) -> None:
    emit(Progress("bench", f"measuring {progress.test}", progress.done, progress.total, "steps"))


def _naming(node: Node, emit: Emit) -> Emit:
    """Reports of one node among several: those that tell of something long or unexpected, with its name."""

    def report(event: Event) -> None:
        match event:
            case Progress():
                emit(replace(event, key=f"{node.name} {event.key}", text=f"{node.name}: {event.text}"))
            case Notice():
                emit(Notice(f"{node.name}: {event.text}"))
            case Retry():
                emit(event)

    return report
