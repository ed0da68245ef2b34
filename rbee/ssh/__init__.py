"""Connections over SSH: hop by hop, each opened and checked by us, with three tries.

Rules
- Only what may pass by itself is tried again; a refused key or user never is (servers punish that).
- Whoever opens a hop closes it, the last one first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import asyncssh

from rbee.connection import AskPassphrase, ConnectTimings
from rbee.errors import ConnectError
from rbee.events import Emit, Retry
from rbee.inventory import Node
from rbee.ssh.channels import SSHConnection
from rbee.ssh.config import Hop, route
from rbee.ssh.handshake import Opened, open_hop, show_host_key
from rbee.ssh.hostkeys import HostKey

#: Seconds before the second and the third try.
DELAYS = (0.2, 0.4)

_CLOSE_TIMEOUT = 2.0

T = TypeVar("T")


@asynccontextmanager
async def connect(
    node: Node,
    nodes: Mapping[str, Node],
    *,
    emit: Emit,
    keeper_id: str,
    ask_passphrase: AskPassphrase | None = None,
) -> AsyncIterator[SSHConnection]:
    """Reach `node` over its jump hosts. Raises as `reach.open_connection`."""
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        *before, last = route(node, nodes)
        tunnel = await _open_all(before, stack, emit, ask_passphrase)
        opened = await _open(last, tunnel, stack, emit, ask_passphrase)
        timings = ConnectTimings(opened.connected_at - started, time.monotonic() - opened.connected_at)
        yield SSHConnection(opened.connection, timings, keeper_id=keeper_id)


async def scan_host_key(
    node: Node, nodes: Mapping[str, Node], *, emit: Emit, ask_passphrase: AskPassphrase | None = None
) -> HostKey:
    """The host key that `node` shows, unchecked, for somebody to look at and pin. Its jump hosts are checked.

    Raises ConnectError, RefusedError (by a jump host), ConfigError.
    """
    async with AsyncExitStack() as stack:
        *before, last = route(node, nodes)
        tunnel = await _open_all(before, stack, emit, ask_passphrase)
        return await _tries(last, emit, lambda: show_host_key(last, tunnel))


async def _open_all(
    hops: list[Hop], stack: AsyncExitStack, emit: Emit, ask: AskPassphrase | None
) -> asyncssh.SSHClientConnection | None:
    """The jump hosts, each through the one before; the last of them, None when there is none."""
    tunnel = None
    for hop in hops:
        tunnel = (await _open(hop, tunnel, stack, emit, ask)).connection
    return tunnel


async def _open(
    hop: Hop,
    tunnel: asyncssh.SSHClientConnection | None,
    stack: AsyncExitStack,
    emit: Emit,
    ask: AskPassphrase | None,
) -> Opened:
    opened = await _tries(hop, emit, lambda: open_hop(hop, tunnel, ask))
    stack.push_async_callback(_close, opened.connection)
    return opened


async def _tries(hop: Hop, emit: Emit, attempt: Callable[[], Awaitable[T]]) -> T:
    for number, delay in enumerate((*DELAYS, None), start=1):
        try:
            return await attempt()
        except ConnectError as error:
            reason = str(error.details.get("reason", error.message))
            emit(Retry(f"connecting to {hop.name}", number, len(DELAYS) + 1, reason, delay))
            if delay is None:
                raise
            await asyncio.sleep(delay)
    raise AssertionError("the last try returned or raised")


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.wait_closed()
    except TimeoutError:  # the other side does not say goodbye
        connection.abort()
        await connection.wait_closed()
    except asyncio.CancelledError:
        connection.abort()
        raise
