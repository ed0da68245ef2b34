"""What is known of nodes and workers at one moment, as values. Pure.

Shares go from 0 to 1, memory is in MB (10**6 bytes). What a node said of itself is here as it said it: who shows it
makes one line of it first.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds of history that are kept, one number for each.
HISTORY_S = 60


class NodeState(enum.Enum):
    """UP: its hive is heard. NO_HIVE: connected, and nothing of rbee runs there. DOWN: the last try failed, or the hive
    is silent."""

    CONNECTING = "connecting"
    UP = "up"
    NO_HIVE = "no hive"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """rate: generated tokens a second, of the last seconds. history: the same for each of them, the last one at the
    end. first_token_s: of late, 0 while unknown. progress: of a load. note: how it failed, or "" ."""

    node: str
    id: str
    model: str
    state: str
    device: str
    slots: int
    running: int
    queued: int = 0
    rate: float = 0.0
    history: tuple[float, ...] = ()
    first_token_s: float = 0.0
    ctx: int = 0
    rss_mb: int = 0
    progress: float = 1.0
    idle_s: float | None = None
    requests: int = 0
    generated: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """use: None where its driver does not say."""

    name: str
    total_mb: int
    used_mb: int
    use: float | None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """why: what is wrong, a clause, "" for nothing. retry_s: seconds until it is tried again. cpu: None where nobody
    has said. cores, ram_total_mb: 0 where nobody has said."""

    name: str
    state: NodeState
    why: str = ""
    retry_s: float | None = None
    tags: tuple[str, ...] = ()
    cores: int = 0
    cpu: float | None = None
    ram_total_mb: int = 0
    ram_used_mb: int = 0
    gpus: tuple[GpuRow, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    rate: float = 0.0
    history: tuple[float, ...] = ()

    @property
    def running(self) -> int:
        return sum(worker.running for worker in self.workers)

    @property
    def slots(self) -> int:
        return sum(worker.slots for worker in self.workers)

    @property
    def queued(self) -> int:
        return sum(worker.queued for worker in self.workers)

    @property
    def first_token_s(self) -> float:
        """Of the worker that takes longest: who waits, waits there."""
        return max((worker.first_token_s for worker in self.workers), default=0.0)

    @property
    def gpu_use(self) -> float | None:
        """Of all that say, in their mean."""
        said = [gpu.use for gpu in self.gpus if gpu.use is not None]
        return sum(said) / len(said) if said else None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests at the gateway that no worker has taken yet. client: the name of their key, "" for none. longest_s: for
    how long the first of them has waited."""

    model: str
    client: str
    count: int
    longest_s: float


@dataclass(frozen=True, slots=True)
class GatewayRow:
    """A `rbee serve` on the same home. running: requests that workers have."""

    running: int
    waiting: tuple[Waiting, ...] = ()

    @property
    def waits(self) -> int:
        return sum(each.count for each in self.waiting)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All of it. history: generated tokens of all nodes, for each of the last seconds."""

    nodes: tuple[NodeRow, ...]
    gateway: GatewayRow | None = None
    history: tuple[float, ...] = ()

    @property
    def workers(self) -> list[WorkerRow]:
        return [worker for node in self.nodes for worker in node.workers]

    @property
    def rate(self) -> float:
        return sum(node.rate for node in self.nodes)


def waiting_of(said: Any) -> GatewayRow | None:
    """What the link says of a running gateway; None where it says nothing, or is another rbee's."""
    try:
        waiting = tuple(
            Waiting(str(each["model"]), str(each["client"]), int(each["count"]), float(each["longest_s"]))
            for each in said["waiting"]
        )
        return GatewayRow(int(said["running"]), waiting)
    except (TypeError, KeyError, ValueError):
        return None


def summed(histories: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Second by second, the last of each at the same place."""
    longest = max(map(len, histories), default=0)
    total = [0.0] * longest
    for history in histories:
        for place, value in enumerate(history, longest - len(history)):
            total[place] += value
    return tuple(total)
