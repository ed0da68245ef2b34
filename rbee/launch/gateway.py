"""A gateway for one program, on loopback, with a key that nobody else has and a name for its model.

It is no gateway of the home: `rbee serve` and others like it may run beside it, and no other command uses it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from rbee.base.errors import RefusedError
from rbee.base.events import Event, Notice
from rbee.context import Context
from rbee.gateway.access.gate import key_in
from rbee.gateway.access.keys import KEY_BYTES, PREFIX, default_path
from rbee.gateway.access.listen import parse_address
from rbee.gateway.assembly import Assembly
from rbee.gateway.base.interfaces import Client
from rbee.gateway.serve import ServeOptions, assembled
from rbee.inventory.aliases import ModelAlias
from rbee_remote.protocol import ErrorCode

_log = logging.getLogger(__name__)

#: In the log folder of rbee's home.
LOG = "launch.log"
_ADDRESS = "127.0.0.1:0"


class OneKeyGate:
    """Lets in who has the key, as often as it likes. name: what its requests are recorded under."""

    needs_key = True

    def __init__(self, key: str, name: str) -> None:
        self._key = key
        self._name = name

    def admit(self, headers: Mapping[str, str], address: str) -> Client:
        """Raises RefusedError INVALID_API_KEY."""
        if not hmac.compare_digest(key_in(headers).encode(), self._key.encode()):
            raise RefusedError(ErrorCode.INVALID_API_KEY, "this gateway is for the program that it was started for")
        return Client(key=self._name, address=address)

    @contextmanager
    def open(self, client: Client) -> Iterator[None]:
        del client
        yield


def new_key() -> str:
    return PREFIX + secrets.token_hex(KEY_BYTES)


@asynccontextmanager
async def gateway_for(
    context: Context, name: str, key: str, nodes: str | None, aliases: Mapping[str, ModelAlias]
) -> AsyncIterator[str]:
    """Its address, for as long as it serves. name: of the program. What it has to say goes to its log.

    Raises ConfigError where that cannot be written.
    """

    def emit(event: Event) -> None:
        if isinstance(event, Notice):
            _log.info("%s", event.text)

    quiet = replace(context, ask=None, ask_passphrase=None, emit=emit)
    options = ServeOptions(keys=default_path(context.settings), listen=(parse_address(_ADDRESS),), nodes=nodes)
    parts = Assembly(aliases=aliases)
    async with assembled(quiet, options, parts, OneKeyGate(key, f"launch-{name}"), LOG) as it:
        begun = asyncio.Event()
        it.server.on_startup = begun.set
        serving = asyncio.create_task(it.server.run_until_ended(), name="gateway of a program")
        try:
            await begun.wait()
            yield it.urls[0]
        finally:
            it.server.cut()
            it.server.end()
            await serving
