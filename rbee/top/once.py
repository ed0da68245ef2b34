"""`rbee top --once`: how it is now, for scripts; the rows of the screen as a table, and all that is known as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from rbee.context import Context
from rbee.inventory import Node
from rbee.render import Table
from rbee.render.text import clock_time
from rbee.top import columns, serving
from rbee.top.feed import Feeds, watching
from rbee.top.model import Fleet, NodeRow, NodeState, WorkerRow
from rbee.top.watched import WatchedNode

#: Seconds until what has not answered is shown as it is then.
PATIENCE_S = 12.0
#: A rate takes two readings, which are a second apart; a hive that tells of none is not waited for longer than this.
_READINGS, _READINGS_S = 2, 2.5


async def once(context: Context, nodes: Sequence[Node], patience_s: float = PATIENCE_S) -> Fleet:
    """What there is, once each node is heard or known not to answer. Raises ConfigError."""
    async with AsyncExitStack() as stack:
        context = await stack.enter_async_context(watching(context))
        woken = asyncio.Event()
        feeds = await stack.enter_async_context(Feeds(context, nodes, woken.set))
        until = time.monotonic() + patience_s
        while (now := time.monotonic()) < until and not all(_is_settled(each, now) for each in feeds.nodes.values()):
            feeds.check()
            woken.clear()
            try:
                async with asyncio.timeout(min(until - now, 0.25)):
                    await woken.wait()
            except TimeoutError:
                pass
        now = time.monotonic()
        return Fleet(tuple(node.row(now) for node in feeds.nodes.values()), await serving.gateway())


def _is_settled(node: WatchedNode, now: float) -> bool:
    if node.state is not NodeState.UP:
        return node.state is not NodeState.CONNECTING
    return node.heard_load >= _READINGS or (not node.heard_load and now - node.up_at > _READINGS_S)


def table(fleet: Fleet) -> Table:
    """Each node, and its workers below it. The JSON of it has one object a row."""
    rows = []
    for node in fleet.nodes:
        rows.append(_node_cells(node))
        rows += [_worker_cells(worker) for worker in node.workers]
    titles = ("NODE", "WORKER", "MODEL", "STATE", "CPU/GPU", "MEMORY", "SLOTS", "WAIT", "TOK/S", "TTFT", "NOTE")
    return Table(titles, rows, ())


def document(fleet: Fleet) -> dict[str, Any]:
    """All of it as JSON values; histories are left out, which a moment has none of."""
    waiting = fleet.gateway
    return {
        "nodes": [node_data(node) for node in fleet.nodes],
        "gateway": asdict(waiting) if waiting else None,
        "tokens_per_s": round(fleet.rate, 2),
    }


def node_data(node: NodeRow) -> Mapping[str, Any]:
    return {
        "node": node.name,
        "state": node.state.value,
        "reason": node.why,
        "tags": list(node.tags),
        "cores": node.cores or None,
        "cpu": node.cpu,
        "ram_total_mb": node.ram_total_mb or None,
        "ram_used_mb": node.ram_used_mb if node.ram_total_mb else None,
        "gpus": [asdict(gpu) for gpu in node.gpus],
        "tokens_per_s": round(node.rate, 2),
        "workers": [_worker_data(worker) for worker in node.workers],
    }


def _worker_data(worker: WorkerRow) -> dict[str, Any]:
    return {
        "id": worker.id,
        "model": worker.model,
        "state": worker.state,
        "device": worker.device,
        "ctx": worker.ctx,
        "slots": worker.slots,
        "running": worker.running,
        "queued": worker.queued,
        "tokens_per_s": round(worker.rate, 2),
        "first_token_s": worker.first_token_s or None,
        "requests": worker.requests,
        "generated_tokens": worker.generated,
        "rss_mb": worker.rss_mb,
        "progress": worker.progress,
        "idle_s": None if worker.idle_s is None else round(worker.idle_s, 1),
        "error": worker.note,
    }


def _node_cells(node: NodeRow) -> Sequence[str]:
    gpu, cpu = columns.percent(node.gpu_use), columns.percent(node.cpu)
    use = f"GPU {gpu}" if gpu else f"CPU {cpu}" if cpu else "-"
    total, used = sum(each.total_mb for each in node.gpus), sum(each.used_mb for each in node.gpus)
    memory = columns.gigabytes(used, total) or columns.gigabytes(node.ram_used_mb, node.ram_total_mb)
    slots = f"{node.running}/{node.slots}" if node.slots else "-"
    waits, rate = str(node.queued) if node.slots else "-", columns.rate(node.rate) or "-"
    wait_s = columns.seconds(node.first_token_s) or "-"
    return (node.name, "-", "-", node.state.value, use, memory or "-", slots, waits, rate, wait_s, node.why)


def _worker_cells(worker: WorkerRow) -> Sequence[str]:
    state = f"loading {worker.progress:.0%}" if worker.state == "loading" else worker.state
    idle = f"idle for {clock_time(worker.idle_s)}" if worker.idle_s is not None else ""
    return (
        worker.node,
        worker.id[:8],
        worker.model,
        state,
        worker.device,
        f"{worker.rss_mb} MB" if worker.rss_mb else "-",
        f"{worker.running}/{worker.slots}",
        str(worker.queued),
        columns.rate(worker.rate) or "-",
        columns.seconds(worker.first_token_s) or "-",
        worker.note or idle,
    )
