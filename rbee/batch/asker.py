"""Requests through a gateway inside this process: nodes, routing and failover are the gateway's, and no socket is
between. Its records are its own: `log/batch.log` has a line for each request, and `rbee usage` counts them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import ASGIApp, Message

from rbee.base.events import Event, Notice
from rbee.context import Context
from rbee.gateway.assembly import Assembly
from rbee.gateway.base.interfaces import Client, Ended, Recorder
from rbee.gateway.base.views import NodeView
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.records.metrics import Metrics
from rbee.gateway.records.records import Records
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.model_list import ModelNames
from rbee.gateway.requests.parts import AppSettings, Names, Parts
from rbee.gateway.requests.presence import until_known
from rbee.inventory.aliases import ModelAlias

_log = logging.getLogger(__name__)

#: In the log folder of rbee's home.
LOG = "batch.log"
#: Seconds: lines wait for as long as a model loads, and take as long as they take.
_LONG_S = 7 * 86400.0
#: Seconds in which nodes are heard of that will be.
ACQUAINT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """status, body: of the HTTP answer. ended: what the gateway knows of the request."""

    status: int
    body: bytes
    ended: Ended


class Asker:
    """fleet: its nodes."""

    def __init__(self, app: ASGIApp, fleet: NodeFleet, names: Names, client: Client, ended: dict[str, Ended]) -> None:
        self.fleet = fleet
        self._app = app
        self._names = names
        self._client = client
        self._ended = ended

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        return self.fleet.nodes

    async def acquainted(self) -> None:
        """Once each node was reached, or could not be."""
        await until_known(self.fleet, ACQUAINT_S)

    def models(self, name: str) -> tuple[str, ...]:
        """The refs that a model's name means. Raises NodeError MODEL_NOT_FOUND."""
        return tuple(target.model for target in self._names.resolve(name, self._client).targets)

    async def ask(self, path: str, body: Mapping[str, Any], request_id: str) -> Answer:
        """Canceled, it ends the request at its worker, too."""
        content = json.dumps(body).encode("ascii")
        call = _Call(content)
        task = asyncio.ensure_future(self._app(_scope(path, request_id), call.receive, call.send))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            ended = self._ended.pop(request_id, None)
        assert ended is not None
        return Answer(call.status, bytes(call.content), ended)


class _Call:
    """What the app sees of its client."""

    def __init__(self, content: bytes) -> None:
        self.status = 0
        self.content = bytearray()
        self._body: bytes | None = content

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.get_running_loop().create_future()  # the client stays
        raise AssertionError

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.content += message.get("body", b"")


def _scope(path: str, request_id: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii"),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode("ascii"))],
        "client": None,
        "server": ("rbee", 80),
    }


class _Gate:
    """There is one client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def admit(self, headers: Mapping[str, str], address: str) -> Client:
        del headers, address
        return self._client

    @contextmanager
    def open(self, client: Client) -> Iterator[None]:
        del client
        yield


class _Noted:
    """A recorder that keeps what it is told of for whoever asked."""

    def __init__(self, records: Recorder) -> None:
        self.kept: dict[str, Ended] = {}
        self._records = records

    def ended(self, request: Ended) -> None:
        self.kept[request.request_id] = request
        self._records.ended(request)


@asynccontextmanager
async def asker_for(context: Context, nodes: str | None, aliases: Mapping[str, ModelAlias]) -> AsyncIterator[Asker]:
    """nodes: as of `Inventory.select`. What nodes have to say goes to the log, but for notices.

    Raises ConfigError, UsageError.
    """

    def emit(event: Event) -> None:
        if isinstance(event, Notice):
            _log.info("%s", event.text)
            context.emit(event)

    quiet = replace(context, ask=None, ask_passphrase=None, emit=emit)
    client = Client(key="batch", background=True, fetches=nodes is not None)
    assembly = Assembly(aliases=aliases)
    with Records(context.settings, Metrics(), LOG, audits=False) as records:
        async with assembly.fleet(quiet, nodes) as fleet, assembly.dispatcher(fleet) as dispatcher:
            noted = _Noted(records)
            names = ModelNames(lambda: fleet.inventory, fleet)
            settings = AppSettings(wait_s=_LONG_S, request_s=_LONG_S, acquaint_s=ACQUAINT_S)
            app = make_app(Parts(fleet, dispatcher, _Gate(client), noted, names, settings))
            yield Asker(app, fleet, names, client, noted.kept)
