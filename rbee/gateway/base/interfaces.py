"""What the parts of the gateway are to each other, each of them a Protocol: whoever uses one is tested with a double.

proxy ── gate (who may), dispatcher (where), fleet (the bytes), recorder (what it was)
dispatcher ── fleet (what there is, what is to be started)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rbee.gateway.base.views import NodeView, Target, Waiting, Wanted, WorkerKey, WorkerView
from rbee_remote.protocol import TrackedUsage


class Ticket(Protocol):
    """A request's place in a queue, then its place at a worker, until it is closed."""

    @property
    def waiting(self) -> Waiting:
        """While `worker` has not returned."""

    async def worker(self) -> WorkerView:
        """The worker that takes it. Raises NodeError: ALL_SLOTS_BUSY (details: retry_after_s) where the deadline passes
        or the queue is full, what a load failed with, WORKER_GONE where no node can serve it; ConnectError where all
        that could are unreachable."""

    def close(self) -> None:
        """The request is over, or goes elsewhere. Idempotent; at any time."""


class Dispatcher(Protocol):
    def enter(self, wanted: Wanted) -> Ticket:
        """Queue a request. Raises NodeError as `Ticket.worker`, at once, where waiting is of no use."""


class RawResponse(Protocol):
    """A worker's answer, as it comes. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they arrive. Raises HungUpError, SilenceError, ConnectError."""


class WorkerHttp(Protocol):
    """One worker's HTTP, over its node's connection."""

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[RawResponse]:
        """path: with its query. Leaving the context ends the exchange, and with it the request on the worker.

        Raises HungUpError, SilenceError, ConnectError, NodeError WORKER_GONE where nobody listens, before the head has
        come. A status of any kind is a response, not an error.
        """


class Fleet(Protocol):
    """The nodes, held."""

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        """In the inventory's order, as of now."""

    @property
    def version(self) -> int:
        """Grows with each change of `nodes`."""

    async def wait_changed(self, seen: int) -> None:
        """Return once `version` is another than `seen`."""

    async def start_worker(self, node: str, target: Target) -> WorkerKey:
        """A worker for the target that serves: one is found, or loaded; whoever asks for the same while it loads waits
        for the same one. Raises what phases 2 to 7 of an `infer` raise."""

    def worker(self, key: WorkerKey) -> WorkerHttp: ...

    def begun(self, key: WorkerKey) -> None:
        """A request of ours goes to a worker: counts in `in_flight`."""

    def ended(self, key: WorkerKey) -> None: ...

    def failed(self, key: WorkerKey) -> None:
        """A worker, or the way to it, failed a request: what is known of it is doubtful until it is heard again."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. key: the key's name, "" where no keys exist or it came over a socket. fingerprint: for logs.
    models: names it may use, empty for all. address: of the peer, "" for a unix socket. background, fetches: as of
    `Wanted`, for all of its requests."""

    key: str = ""
    fingerprint: str = ""
    models: frozenset[str] = frozenset()
    priority: int = 0
    address: str = ""
    background: bool = False
    fetches: bool = False


class Reader(Protocol):
    """A client, as far as it takes what was written for it. was_cut_off: for reading too slowly."""

    was_cut_off: bool

    async def has_all(self) -> bool:
        """Once the client has taken so much that its request is over; False where it never will."""


class Gate(Protocol):
    """Who may ask, and how much at once."""

    def admit(self, headers: Mapping[str, str], address: str) -> Client:
        """headers: names in lower case; `authorization: Bearer`, or `x-api-key`.

        Raises RefusedError INVALID_API_KEY; ConfigError where no key can be checked.
        """

    def open(self, client: Client) -> AbstractContextManager[None]:
        """While one of its requests is open. Raises NodeError RATE_LIMITED (details: retry_after_s)."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over. status: of its HTTP answer. finish: "" for one that ended well, else the error's code,
    also of one within a stream, REQUEST_CANCELED where the client left, or READER_TOO_SLOW where it was cut off.
    failovers: how often it went on elsewhere.

    seconds: until its answer was complete here, which a client may take later; first_s: to the answer's first byte of
    content, None for none; queue_s: until it had a worker.
    path: without its query. model: as resolved, asked: as the client named it. was_let_in: False for one whose key was
    refused, or could not be checked.
    """

    request_id: str
    client: Client
    method: str
    path: str
    status: int
    asked: str = ""
    model: str = ""
    worker: WorkerKey | None = None
    usage: TrackedUsage | None = None
    finish: str = ""
    failovers: int = 0
    seconds: float = 0.0
    first_s: float | None = None
    queue_s: float = 0.0
    traceparent: str = ""
    was_let_in: bool = True


class Recorder(Protocol):
    """Usage, metrics, the audit log's line and the access log's, of each request once."""

    def ended(self, request: Ended) -> None: ...
