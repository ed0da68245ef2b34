"""What every request passes before the app: it is counted, so that the gateway can end after the last, and it is
refused where a web page made it that may not.

Rules
- Where nobody needs a key, loopback is all that keeps strangers out, and a browser is on the inside: a page of any site
  can send requests there. So what names another host (DNS rebinding), or comes from a page of a site that `--cors` does
  not name, is refused.
- What says its length in two ways is refused: whoever passed it on may have read the other one (request smuggling).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee.gateway.access.gate import Refusals
from rbee.gateway.requests.errors import Refusal, body_of, form_of
from rbee.gateway.requests.headers import HEADER_REQUEST_ID, request_id
from rbee_remote.protocol import ErrorCode


class Entrance:
    """needs_key: whether requests need one now. origins: sites whose pages may ask. hosts: names that the gateway has
    beside loopback's."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        needs_key: Callable[[], bool],
        origins: Collection[str] = (),
        hosts: Collection[str] = (),
    ) -> None:
        self._app = app
        self._needs_key = needs_key
        self._origins = frozenset(origins)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._strangers = Refusals("to a web page, or under a name that is not this machine's")
        self._empty = asyncio.Event()
        self._empty.set()
        self.open = 0

    async def emptied(self) -> None:
        """Returns when no request is open."""
        await self._empty.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refused(scope, refusal)(scope, receive, send)
            return
        self.open += 1
        self._empty.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1
            if not self.open:
                self._empty.set()

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            told = "a request has Content-Length or Transfer-Encoding, not both"
            return Refusal(400, ErrorCode.USAGE.value, told, headers={"Connection": "close"})
        if scope.get("client") is None or self._needs_key():
            return None
        host, origin = _host(headers.get("host", "")), headers.get("origin", "")
        if host and not (_is_loopback(host) or host in self._hosts):
            told = f"a request to the host {host[:100]!r} needs an API key; `rbee keys add NAME` makes one"
        elif origin and origin not in self._origins and not _is_own(origin, headers.get("host", "")):
            told = f"pages of {origin[:100]!r} may not ask this gateway; `--cors ORIGIN` lets those of a site"
        else:
            return None
        self._strangers.add(scope["client"][0])
        return Refusal(403, ErrorCode.USAGE.value, told)


def _refused(scope: Scope, refusal: Refusal) -> Response:
    return Response(
        body_of(refusal, form_of(scope["path"])),
        refusal.status,
        {HEADER_REQUEST_ID: request_id(Headers(scope=scope)), **refusal.headers},
        "application/json",
    )


def _host(header: str) -> str:
    """Without its port, in lower case; "" for none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return "?"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_own(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False
