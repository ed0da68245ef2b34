"""What every request passes before the app: it is counted, so that the gateway can end after the last, and it is
refused where a web page made it that may not.

Rules
- Where nobody needs a key, loopback is all that keeps strangers out, and a browser is on the inside: a page of any site
  can send requests there. So what names another host (DNS rebinding), or comes from a page of a site that `--cors` does
  not name, is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_remote.protocol import ErrorCode, RemoteError


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
        self._empty = asyncio.Event()
        self._empty.set()
        self.open = 0

    async def emptied(self) -> None:
        """Returns when no request is open."""
        await self._empty.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        self.open += 1
        self._empty.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1
            if not self.open:
                self._empty.set()

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope.get("client") is None or self._needs_key():
            return None
        headers = Headers(scope=scope)
        host, origin = _host(headers.get("host", "")), headers.get("origin", "")
        if host and not (_is_loopback(host) or host in self._hosts):
            what = f"a request to the host {host[:100]!r} needs an API key"
        elif origin and origin not in self._origins and not _is_own(origin, headers.get("host", "")):
            what = f"pages of {origin[:100]} may not ask this gateway"
        else:
            return None
        hint = "`rbee keys add NAME` makes a key; --cors ORIGIN lets the pages of a site ask"
        return JSONResponse(RemoteError(ErrorCode.USAGE, what, hint=hint).encode(), status_code=403)


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
    return urlsplit(origin).netloc.lower() == host.lower()
