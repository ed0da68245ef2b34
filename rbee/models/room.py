"""How large a model has space on a node, for refs that leave open which quantisation of a repository is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rbee.inventory import Node
from rbee.node.probe import Gpu, Probe
from rbee.node.session import NodeSession
from rbee_remote.protocol import DownloadRequest
from rbee_remote.protocol.search import Room

#: Of a memory: the rest is for the context, for what computing takes, and for the system.
_SHARE = 0.8
_MB = 10**6


def room_of(node: Node, probe: Probe) -> int | None:
    """Bytes of a model's file that the node's GPUs hold, or its RAM where it computes on the processor, whoever has
    that memory now; None where it is not known."""
    return int(memory_of(node, probe).mb * _MB * _SHARE) or None


def memory_of(node: Node, probe: Probe) -> Room:
    """All memory of the GPUs that a worker would use, or of the RAM."""
    by_vendor: dict[str, list[Gpu]] = {}
    for gpu in probe.gpus:
        by_vendor.setdefault(gpu.vendor, []).append(gpu)
    on_gpu = node.backend != "cpu" and node.load.gpu_layers != 0
    most = max(by_vendor.values(), key=_total_mb, default=[]) if on_gpu else []
    if total := _total_mb(most):
        return Room(node.name, total, len(most), sum(gpu.memory_free_mb for gpu in most) or None)
    return Room(node.name, probe.ram_total_mb, free_mb=probe.ram_available_mb or None)


def _total_mb(gpus: Sequence[Gpu]) -> int:
    return sum(gpu.memory_total_mb for gpu in gpus)


async def with_room(session: NodeSession, request: DownloadRequest) -> DownloadRequest:
    """The request with what the node has space for, where that decides which file is fetched."""
    if not any(source.kind == "hf" and not source.file for source in request.sources):
        return request
    found = session.attached.probe if session.is_attached else None
    if not found or not found.ram_total_mb:
        found = await session.probe()
    return replace(request, room=room_of(session.node, found))
