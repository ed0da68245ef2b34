"""A hive's life, from its socket to its end: supervisor, routes, and the reasons to stop.

It ends when it is told to (SIGTERM, POST /v1/stop), when it has had neither worker nor download for `idle_exit`
seconds, and when its socket's file is gone or another's: nobody can reach it then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from starlette.types import ASGIApp

from rbee_remote.hive.app import HiveApi
from rbee_remote.hive.digests import Digests
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.pulls import Pulls
from rbee_remote.hive.news import News
from rbee_remote.hive.supervisor import Supervisor, Timing
from rbee_remote.hive.watch import watch
from rbee_remote.protocol import PROTOCOL, VERSION, HiveInfo, StopRequest
from rbee_remote.serving.socket_server import SocketServer
from rbee_remote.system import identity, logs
from rbee_remote.system.audit import Audit
from rbee_remote.system.layout import HiveOptions, socket_identity

_log = logging.getLogger(__name__)

#: Seconds that running responses get at the end, so that those who wait learn how it ended.
_GRACE_S = 2
TOUCH_INTERVAL_S = 3600.0


def serve(options: HiveOptions, listener: socket.socket, on_serving: Callable[[], None]) -> None:
    """Blocks until the hive has ended. on_serving: called when connections to the listener are answered."""
    asyncio.run(_serve(options, listener, on_serving))


async def _serve(options: HiveOptions, listener: socket.socket, on_serving: Callable[[], None]) -> None:
    async with anyio.create_task_group() as tasks:
        catalog = Catalog(options.layout.models)
        timing = Timing(tick=min(1.0, options.idle_exit / 4), stall=options.stall)
        audit = Audit(options.layout)
        audit.begin()
        supervisor = Supervisor(options.layout, catalog, tasks, timing=timing, audit=audit)
        hive = _Hive(options, supervisor, Pulls(catalog, tasks), audit, News(supervisor, catalog))
        server = _Server(hive.api(catalog).app(), on_startup=on_serving)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, hive.stop, StopRequest())
        tasks.start_soon(watch, hive.supervisor)
        tasks.start_soon(hive.watch_reasons_to_end)
        tasks.start_soon(Digests(catalog, supervisor).run)
        tasks.start_soon(keep_touching, options.layout.home, catalog)
        tasks.start_soon(server.serve, [listener])
        await hive.end_when_asked()
        hive.news.end()
        server.end()
        await server.ended.wait()
        tasks.cancel_scope.cancel()
    _log.info("the hive has ended")


async def keep_touching(home: Path, catalog: Catalog) -> None:
    """Tell others every hour that the payload and the runtime are in use, and which models workers may have still:
    those of another machine that has the same home, above all. A clean-up sees what runs on its own machine; what runs
    elsewhere it sees by times of change, and waits for twice as long at least. Runs until cancelled."""
    while True:
        touch_used(home)
        catalog.touch_notes()
        await anyio.sleep(TOUCH_INTERVAL_S)


def touch_used(home: Path) -> None:
    """Touch the payload and the runtime that this process runs from, where they lie in `home`."""
    payload, runtime = Path(__file__).parents[2], Path(sys.prefix)
    real = home.resolve()
    for path, folder in ((payload, "payloads"), (runtime, "runtimes")):
        if path.resolve().parent == real / folder:
            try:
                os.utime(path)
            except OSError as error:
                _log.warning("%s cannot be touched, which says that it is in use: %s", path, error)


class _Server(SocketServer):
    """Tells when it begins and when it has ended."""

    def __init__(self, app: ASGIApp, on_startup: Callable[[], None]) -> None:
        super().__init__(app, grace_s=_GRACE_S)
        self._on_startup = on_startup
        self.ended = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_startup()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.ended.set()


class _Hive:
    def __init__(self, options: HiveOptions, supervisor: Supervisor, pulls: Pulls, audit: Audit, news: News) -> None:
        self._options = options
        self._layout = options.layout
        self._pulls = pulls
        self._audit = audit
        self.supervisor = supervisor
        self.news = news
        self._identity = identity.identify(os.getpid())
        self._instance = secrets.token_hex(8)
        self._started_at = time.time()
        self._stop_request = StopRequest()
        self._stop_asked = anyio.Event()

    def api(self, catalog: Catalog) -> HiveApi:
        return HiveApi(
            catalog=catalog,
            supervisor=self.supervisor,
            pulls=self._pulls,
            audit=self._audit,
            news=self.news,
            info=self.info,
            stop=self.stop,
        )

    def info(self) -> HiveInfo:
        return HiveInfo(
            protocol=PROTOCOL,
            version=VERSION,
            payload=self._options.payload,
            instance=self._instance,
            pid=self._identity.pid,
            start_ticks=self._identity.start_ticks,
            boot_id=self._identity.boot_id,
            started_at=self._started_at,
            home=str(self._layout.home),
            socket=str(self._layout.hive_socket),
            workers=len(self.supervisor.live()),
            draining=self.supervisor.draining,
            runtime=_own_runtime(),
        )

    def stop(self, request: StopRequest) -> None:
        """Begin to end. Asked again without draining, the workers that still drain are ended at once."""
        again, self._stop_request = self.supervisor.draining, request
        self.supervisor.draining = True
        self._stop_asked.set()
        if again and not request.drain:
            self.supervisor.begin_stop_all(request)

    async def end_when_asked(self) -> None:
        """Returns when the hive is asked to end, and nothing of it runs any more."""
        await self._stop_asked.wait()
        _log.info("the hive is stopping, %d workers", len(self.supervisor.live()))
        self._pulls.cancel_all()
        await self.supervisor.stop_all(self._stop_request)
        self._audit.note("hive.end", pid=os.getpid())

    async def watch_reasons_to_end(self) -> None:
        """Runs until cancelled."""
        socket_path, busy_at = self._layout.hive_socket, time.monotonic()
        own = socket_identity(socket_path)
        while True:
            await anyio.sleep(self.supervisor.timing.tick)
            logs.rotate(self._layout.hive_log)
            if self.supervisor.live() or self._pulls.running:
                busy_at = time.monotonic()
            if socket_identity(socket_path) != own:
                _log.warning("the socket %s is gone or another's", socket_path)
                return self.stop(StopRequest())
            if time.monotonic() - busy_at >= self._options.idle_exit:
                _log.info("nothing to do for %.0f s", self._options.idle_exit)
                return self.stop(StopRequest())


def _own_runtime() -> str:
    """The key of the runtime that this Python is of, "" for one that no bootstrap made."""
    name = Path(sys.prefix).name
    return name if re.fullmatch(r"[0-9a-f]{16}", name) else ""
