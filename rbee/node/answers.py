"""What hives and workers answer, checked: its shape by `protocol.decode`, and here whatever goes on into paths, headers
and decisions. Anything else raises NonsenseError. Pure."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

from rbee.node.socket_http import NonsenseError, ServerSentEvent
from rbee_remote.protocol import (
    BenchProgress,
    BenchResult,
    Done,
    HiveNews,
    NodeLoad,
    ProtocolError,
    Started,
    TokenEvent,
    WorkerInfo,
    WorkerNews,
    decode,
)
from rbee_remote.protocol.load_options import MOST_SLOTS
from rbee_remote.protocol.prompt_digest import GAP

Generated = Started | TokenEvent | Done
T = TypeVar("T")

#: Bytes of a socket's path on Linux; elsewhere it is less.
_LONGEST_SOCKET = 107


class Numbered(NamedTuple):
    """An event of an answer. number: 1 for the first."""

    number: int
    event: Generated


def numbered(event: ServerSentEvent) -> Numbered:
    if not re.fullmatch(r"[0-9]{1,18}", event.id):
        raise NonsenseError("an event without a number")
    return Numbered(int(event.id), _generated(event.event, event.data))


def bench_event(event: ServerSentEvent) -> BenchProgress | BenchResult:
    return checked(BenchResult, event.data) if event.event == "done" else checked(BenchProgress, event.data)


def _generated(event: str, data: Any) -> Generated:
    match event:
        case "token":
            return checked(TokenEvent, data)
        case "started":
            return checked(Started, data)
        case "done":
            return checked(Done, data)
    raise NonsenseError(f"an event of the kind {event[:40]!r}")


def hive_news(event: ServerSentEvent) -> HiveNews:
    news = checked(HiveNews, _named("news", event))
    for worker in news.workers:
        _check(worker)
    for sha256 in [info.sha256 for info in news.workers] + [model.sha256 for model in news.models or ()]:
        if not re.fullmatch(r"([0-9a-f]{64})?", sha256):
            raise NonsenseError(f"a model with the SHA-256 {sha256[:40]!r}")
    return news


def watched(event: ServerSentEvent) -> HiveNews | NodeLoad:
    """An event of a hive that is watched; an older one has no loads to tell."""
    return node_load(event.data) if event.event == "load" else hive_news(event)


def node_load(data: Any) -> NodeLoad:
    load = checked(NodeLoad, data)
    numbers = [load.at, load.cores, load.ram_total_mb, load.ram_used_mb]
    numbers += [number for gpu in load.gpus for number in (gpu.total_mb, gpu.used_mb)]
    if min(numbers) < 0 or not all(share is None or 0 <= share <= 1 for share in _shares(load)):
        raise NonsenseError("a load below nothing, or above all")
    for worker in load.workers:
        work = worker.work
        if min(worker.running, worker.queued, worker.rss_mb, work.generated, work.prompt, work.requests) < 0:
            raise NonsenseError("a worker that does less than nothing")
        if not re.fullmatch(r"[0-9a-f]{16}", worker.id) or work.first_token_s < 0:
            raise NonsenseError(f"a load of the worker {worker.id[:40]!r}")
    return load


def _shares(load: NodeLoad) -> list[float | None]:
    return [load.cpu, *(gpu.use for gpu in load.gpus)]


def worker_news(event: ServerSentEvent) -> WorkerNews:
    news = checked(WorkerNews, _named("news", event))
    status = news.status
    if not 0 <= status.slots_free <= status.slots <= MOST_SLOTS or status.queued < 0:
        raise NonsenseError(f"{status.slots_free} of {status.slots} slots free, {status.queued} queued")
    if len({memory.slot for memory in news.slots}) < len(news.slots):
        raise NonsenseError("a slot with two memories")
    for memory in news.slots:
        if not 0 <= memory.slot < status.slots:
            raise NonsenseError(f"a memory of slot {memory.slot} of {status.slots}")
        if not all(digest == GAP or re.fullmatch(r"[0-9a-f]{16}", digest) for digest in memory.digests):
            raise NonsenseError("a digest that is none")
    return news


def _named(name: str, event: ServerSentEvent) -> Any:
    if event.event != name:
        raise NonsenseError(f"an event of the kind {event.event[:40]!r}")
    return event.data


def worker_info(data: Any) -> WorkerInfo:
    """Its id becomes part of paths and headers, its socket is connected to."""
    return _check(checked(WorkerInfo, data))


def _check(worker: WorkerInfo) -> WorkerInfo:
    if not re.fullmatch(r"[0-9a-f]{16}", worker.id):
        raise NonsenseError(f"a worker with the id {worker.id[:40]!r}")
    if not worker.socket.startswith("/") or "\0" in worker.socket or len(worker.socket.encode()) > _LONGEST_SOCKET:
        raise NonsenseError(f"a worker with the socket {worker.socket[:40]!r}")
    if not re.fullmatch(r"([0-9a-f]{32})?", worker.secret):
        raise NonsenseError("a worker with an invalid secret")
    return worker


def checked(cls: type[T], data: Any) -> T:
    try:
        return decode(cls, data)
    except ProtocolError as error:
        raise NonsenseError(str(error)) from error


def listed(data: Any, key: str) -> list[Any]:
    items = data.get(key) if isinstance(data, dict) else None
    if not isinstance(items, list):
        raise NonsenseError(f"no list of {key}")
    return items
