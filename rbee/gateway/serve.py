"""`rbee serve`: what runs, in the order in which it is begun.

Rules
- Where it may listen is settled before anything is begun; it serves at once, whatever the nodes do.
- SIGHUP reads the inventory and the certificate again; the file of keys is looked at with each request.
- One gateway for each home: the kernel's lock says so, however the one before it ended.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rbee import audit
from rbee.base.descriptors import raise_descriptor_limit
from rbee.base.errors import ConfigError, RbeeError, UsageError
from rbee.base.events import Notice
from rbee.base.locks import held_at_once, keeper_lock_path
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.gateway.access.entrance import Entrance
from rbee.gateway.access.gate import KeyGate
from rbee.gateway.access.listen import Address, bound, load_certificate, tls_context, unix_listener
from rbee.gateway.access.readers import Room
from rbee.gateway.base.interfaces import Dispatcher, Fleet, Gate, Recorder
from rbee.gateway.life import DrainableApp, Life, Link, Server
from rbee.gateway.records import loop_lag, request_log
from rbee.gateway.records.metrics import Metrics
from rbee.gateway.records.records import Records
from rbee.gateway.requests.presence import until_known
from rbee_remote.protocol import ErrorCode
from rbee_remote.serving.socket_server import Bounds

_log = logging.getLogger(__name__)

#: Connections that are open at once, and descriptors that are asked for: each request has one more, to its node.
CONNECTIONS, DESCRIPTORS = 2048, 8192
#: Seconds after which what the gateway needs is loaded, whatever its nodes do.
HEARD_OF_S = 60.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """listen: TCP addresses. socket: a unix socket's path. nodes: which to use, as `Inventory.select` has it.

    keys: the file of keys, which may be missing. certificate, key: both or neither. origins: sites whose pages may ask.
    build_for_gpus: build llama.cpp for GPUs that idle for want of it.
    """

    keys: Path
    listen: tuple[Address, ...] = ()
    socket: Path | None = None
    nodes: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    origins: tuple[str, ...] = ()
    build_for_gpus: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What is told once the gateway serves. urls: where. nodes: how many."""

    urls: tuple[str, ...]
    nodes: int


class HeldFleet(Fleet, Protocol):
    """The fleet, and what a signal asks of it."""

    def reload(self) -> None:
        """Read the inventory again."""


class CheckingGate(Gate, Protocol):
    """A gate that says whether it lets anybody in without a key."""

    @property
    def needs_key(self) -> bool: ...


FleetT = TypeVar("FleetT", bound=HeldFleet)
DispatcherT = TypeVar("DispatcherT", bound=Dispatcher)


@dataclass(frozen=True, slots=True)
class Surroundings(Generic[FleetT, DispatcherT]):
    """What the app is made of. render_metrics: /metrics for an Accept header, with its content type."""

    fleet: FleetT
    dispatcher: DispatcherT
    gate: Gate
    recorder: Recorder
    render_metrics: Callable[[str], tuple[bytes, str]]
    origins: tuple[str, ...]


class Constructors(Protocol[FleetT, DispatcherT]):
    """How the parts of the gateway are made: `assembly` makes the real ones."""

    def fleet(self, context: Context, nodes: str | None) -> AbstractAsyncContextManager[FleetT]:
        """The nodes, held for as long as the context is entered. Connects to nobody before it is."""

    def dispatcher(self, fleet: FleetT) -> AbstractAsyncContextManager[DispatcherT]: ...

    def waiting(self, dispatcher: DispatcherT) -> Mapping[str, int]:
        """Requests that wait for a worker, by model."""

    def app(self, surroundings: Surroundings[FleetT, DispatcherT]) -> DrainableApp: ...

    def link(self, context: Context, fleet: FleetT) -> AbstractAsyncContextManager[Link]:
        """There for as long as the context is entered."""


@dataclass(frozen=True, slots=True)
class Assembled(Generic[FleetT]):
    """A gateway that answers once its server runs. urls: where, with a unix socket's path."""

    server: Server
    app: DrainableApp
    entrance: Entrance
    fleet: FleetT
    urls: tuple[str, ...]
    tls: ssl.SSLContext | None


async def serve(
    context: Context,
    options: ServeOptions,
    parts: Constructors[FleetT, DispatcherT],
    *,
    tell: Callable[[Serving], None],
) -> None:
    """Serve until a signal ends it. tell: called once it serves.

    Raises UsageError where it may not listen there, ConfigError, RbeeError IN_USE where another one does or runs, and
    RbeeError REQUEST_CANCELED where a second signal ended it.
    """
    gate = KeyGate(options.keys)
    gate.check()
    _check_who_may_come(context, options, gate)
    with _the_one_gateway(context.settings):
        async with assembled(context, options, parts, gate) as it:
            serving = Serving(it.urls, len(it.fleet.nodes))
            it.server.on_startup = lambda: _tell(context, serving, tell)
            life = Life(it.server, it.app, it.entrance, lambda: _reload(it.fleet, it.tls, options))
            await life.lead(context, parts.link(context, it.fleet))


@asynccontextmanager
async def assembled(
    context: Context,
    options: ServeOptions,
    parts: Constructors[FleetT, DispatcherT],
    gate: CheckingGate,
    log: str = request_log.NAME,
) -> AsyncIterator[Assembled[FleetT]]:
    """A gateway whose sockets listen, and whose server is to be run. log: the name of its log's file.

    Raises UsageError and RbeeError IN_USE where it cannot listen there, ConfigError.
    """
    raise_descriptor_limit(DESCRIPTORS)
    with contextlib.ExitStack() as opened:
        tls = tls_context(options.certificate, options.key) if options.certificate and options.key else None
        tcp = opened.enter_context(bound(options.listen))
        unix = [opened.enter_context(unix_listener(options.socket))] if options.socket else []
        metrics = Metrics()
        records = opened.enter_context(Records(context.settings, metrics, log))
        async with AsyncExitStack() as running:
            fleet = await running.enter_async_context(parts.fleet(context, options.nodes))
            dispatcher = await running.enter_async_context(parts.dispatcher(fleet))
            metrics.watch(fleet, lambda: parts.waiting(dispatcher))
            await running.enter_async_context(loop_lag.watched(metrics.lagged))
            await running.enter_async_context(loop_lag.spared(until_known(fleet, HEARD_OF_S)))
            app = parts.app(Surroundings(fleet, dispatcher, gate, records, metrics.render, options.origins))
            hosts = [address.host for address in options.listen]
            entrance = Entrance(app, needs_key=lambda: gate.needs_key, origins=options.origins, hosts=hosts)
            bounds = Bounds.of_this_process(CONNECTIONS, Room().flow)
            plain, encrypted = (unix, tcp) if tls else ([*tcp, *unix], [])
            server = Server(entrance, bounds, plain=plain, encrypted=encrypted, tls=tls)
            urls = _urls(tcp, options.socket, "https" if tls else "http")
            yield Assembled(server, app, entrance, fleet, urls, tls)


def _check_who_may_come(context: Context, options: ServeOptions, gate: KeyGate) -> None:
    """Raises UsageError where strangers could ask."""
    open_to_all = [address for address in options.listen if not address.is_loopback]
    if not open_to_all:
        return
    if not gate.needs_key:
        raise UsageError(
            f"{open_to_all[0]} can be reached from other machines, and {options.keys} has no API key",
            hint="`rbee keys add NAME` makes one; without keys there is loopback (127.0.0.1) and --socket",
        )
    if not options.certificate:
        context.emit(
            Notice(
                f"{open_to_all[0]} is served without TLS: keys, prompts and answers can be read on the way "
                "(--tls-cert, --tls-key)"
            )
        )


@contextmanager
def _the_one_gateway(settings: Settings) -> Iterator[None]:
    with held_at_once(keeper_lock_path(settings, "gateway")) as is_held:
        if not is_held:
            raise RbeeError(
                ErrorCode.IN_USE,
                f"another `rbee serve` runs with {settings.home}",
                hint="use that one, or end it; another gateway needs another RBEE_HOME",
            )
        yield


def _urls(tcp: list[socket.socket], path: Path | None, scheme: str) -> tuple[str, ...]:
    found = []
    for listener in tcp:
        host, port = listener.getsockname()[:2]
        found.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    return (*found, *([str(path.absolute())] if path else []))


def _tell(context: Context, serving: Serving, tell: Callable[[Serving], None]) -> None:
    audit.record(context.settings, "gateway.start", emit=context.emit, listen=" ".join(serving.urls))
    _log.info("serving on %s, %d nodes", ", ".join(serving.urls), serving.nodes)
    tell(serving)


def _reload(fleet: HeldFleet, tls: ssl.SSLContext | None, options: ServeOptions) -> None:
    _log.info("reading the inventory again")
    fleet.reload()
    if tls and options.certificate and options.key:
        try:
            load_certificate(tls, options.certificate, options.key)
        except ConfigError as error:
            _log.error("the certificate stays as it was: %s", error.message)
