"""How much a node and its workers have to do, as it is told to who watches."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a worker has done since it started, requests that still run included.

    generated: tokens. prompt: tokens of prompts, and of texts whose embedding was computed. requests: those that are
    over. first_token_s: seconds from a request to its first token, of late; 0 while unknown.
    """

    generated: int = 0
    prompt: int = 0
    requests: int = 0
    first_token_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerLoad:
    """running: requests that have a slot. queued: those that wait for one. rss_mb: resident memory in MB."""

    id: str
    running: int = 0
    queued: int = 0
    rss_mb: int = 0
    work: Work = Work()


@dataclasses.dataclass(frozen=True, slots=True)
class GpuLoad:
    """use: the share of the time in which it computed, 0 to 1; None where its driver does not say. Memory in MB."""

    id: str
    name: str
    total_mb: int
    used_mb: int
    use: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class NodeLoad:
    """Event `load` of GET /v1/news?load=1 on a hive's socket: at once, and then every second.

    at: seconds on the node's own clock, which never goes back. cpu: the share of all cores' time that was used since
    the reading before, 0 to 1; None for the first, and where the system does not tell. ram_total_mb: or what a control
    group allows. ram_used_mb: what nobody else can have.
    """

    at: float
    cores: int
    cpu: float | None
    ram_total_mb: int
    ram_used_mb: int
    gpus: tuple[GpuLoad, ...] = ()
    workers: tuple[WorkerLoad, ...] = ()
