"""What the gateway's app is made of: the other parts, and its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rbee.base.retries import FAILOVER_BACK_S, FAILOVER_HEAD_S, FAILOVER_RESUME_S
from rbee.gateway.base.interfaces import Client, Dispatcher, Fleet, Gate, Recorder
from rbee.gateway.requests.asked import Bodies
from rbee.gateway.routing.names import Resolved


class Names(Protocol):
    def resolve(self, model: str, client: Client) -> Resolved:
        """model: "" for the one that is the default. Raises NodeError MODEL_NOT_FOUND for what the client cannot have,
        its hint the nearest names."""

    def listing(self, client: Client) -> Sequence[dict[str, Any]]:
        """The entries of /v1/models, each with its `id`."""


@dataclass(frozen=True, slots=True)
class AppSettings:
    """most_body: bytes of a request; most_bodies: of all that are open, eight of the largest. patience_s: until a
    client that streams hears comments, each comment_s then.

    wait_s: that a request waits for a worker; request_s: that it takes in all; a caller that says X-Rbee-Timeout
    replaces both. resume_s: that an answer waits for another worker to go on, which may have to load the model.
    back_s: that a worker's connection has to be made again before another worker goes on. head_s: for a worker that is
    asked again to begin. acquaint_s: that nodes have to be heard of, just after the start, before a model counts as
    unknown: clients such as Open WebUI keep the list that they get, and wait longer than this for it. held: bytes of an
    answer that is no stream, up to which it is kept until it is whole, so that another worker can give it instead.
    origins: of web pages that may ask, "*" for all.
    """

    most_body: int = 32 * 2**20
    most_bodies: int = 256 * 2**20
    patience_s: float = 1.0
    comment_s: float = 3.0
    wait_s: float = 600.0
    request_s: float = 3600.0
    resume_s: float = FAILOVER_RESUME_S
    back_s: float = FAILOVER_BACK_S
    head_s: float = FAILOVER_HEAD_S
    acquaint_s: float = 2.0
    held: int = 8 * 2**20
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """metrics: the page and its media type, for an Accept header; None for no such page."""

    fleet: Fleet
    dispatcher: Dispatcher
    gate: Gate
    recorder: Recorder
    names: Names
    settings: AppSettings
    metrics: Callable[[str], tuple[bytes, str]] | None = None
    bodies: Bodies = field(default_factory=Bodies)
