"""Connections over SSH: hop by hop, each opened and checked by us, with three tries.

Rules
- Only what may pass by itself is tried again; a refused key or user never is (servers punish that).
- A server that hangs up before it says a word has too much to do (MaxStartups): it gets more tries, at random
  intervals, because others try as well.
- Whoever opens a hop closes it, the last one first.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import asyncssh

from rbee.base.errors import ConnectError
from rbee.base.events import Emit, Retry
from rbee.base.retries import SSH_BUSY_DELAYS_S, SSH_BUSY_SPREAD, SSH_DELAYS_S
from rbee.inventory import Node
from rbee.transport.connection import AskPassphrase, ConnectTimings, SocketAccess
from rbee.transport.passphrases import Passphrases
from rbee.transport.ssh.channels import SSHConnection
from rbee.transport.ssh.handshake import BusyError, Opened, open_hop
from rbee.transport.ssh.hops import Hop, route
from rbee.transport.ssh.scan import Scanned, scan

_CLOSE_TIMEOUT = 2.0

T = TypeVar("T")


@asynccontextmanager
async def connect(
    node: Node,
    nodes: Mapping[str, Node],
    *,
    emit: Emit,
    keeper_id: str,
    access: SocketAccess = SocketAccess(),  # noqa: B008 - it is frozen
    ask_passphrase: AskPassphrase | None = None,
) -> AsyncIterator[SSHConnection]:
    """Connect to `node` over its jump hosts. Raises as `open_connection`."""
    started = time.monotonic()
    passphrases = Passphrases(ask_passphrase)
    async with AsyncExitStack() as stack:
        *before, last = route(node, nodes)
        tunnel = await _open_all(before, stack, emit, passphrases)

        async def another() -> asyncssh.SSHClientConnection:
            return (await _open(last, tunnel, stack, emit, passphrases)).connection

        opened = await _open(last, tunnel, stack, emit, passphrases)
        timings = ConnectTimings(opened.connected_at - started, time.monotonic() - opened.connected_at)
        yield SSHConnection(opened.connection, another, timings, keeper_id=keeper_id, access=access)


async def scan_host_key(
    node: Node, nodes: Mapping[str, Node], *, emit: Emit, ask_passphrase: AskPassphrase | None = None
) -> Scanned:
    """The host key that `node` shows, held against known_hosts, and against the pin where it has one; to be pinned.

    Its jump hosts are checked as for any connection.
    Raises ConnectError, RefusedError (HOST_KEY_MISMATCH, or by a jump host), ConfigError.
    """
    async with AsyncExitStack() as stack:
        *before, last = route(node, nodes)
        tunnel = await _open_all(before, stack, emit, Passphrases(ask_passphrase))
        return await _tries(last, emit, lambda: scan(last, tunnel))


async def _open_all(
    hops: list[Hop], stack: AsyncExitStack, emit: Emit, passphrases: Passphrases
) -> asyncssh.SSHClientConnection | None:
    """The jump hosts, each through the one before; the last of them, None when there is none."""
    tunnel = None
    for hop in hops:
        tunnel = (await _open(hop, tunnel, stack, emit, passphrases)).connection
    return tunnel


async def _open(
    hop: Hop,
    tunnel: asyncssh.SSHClientConnection | None,
    stack: AsyncExitStack,
    emit: Emit,
    passphrases: Passphrases,
) -> Opened:
    opened = await _tries(hop, emit, lambda: open_hop(hop, tunnel, passphrases.asking()))
    stack.push_async_callback(_close, opened.connection)
    return opened


async def _tries(hop: Hop, emit: Emit, attempt: Callable[[], Awaitable[T]]) -> T:
    for number in itertools.count(1):
        try:
            return await attempt()
        except ConnectError as error:
            delays = _busy_delays() if isinstance(error, BusyError) else SSH_DELAYS_S
            delay = delays[number - 1] if number <= len(delays) else None
            reason = str(error.details.get("reason", error.message))
            emit(Retry(f"connecting to {hop.name}", number, len(delays) + 1, reason, delay))
            if delay is None:
                raise
            await asyncio.sleep(delay)
    raise AssertionError("the last try returned or raised")


def _busy_delays() -> tuple[float, ...]:
    return tuple(delay * random.uniform(*SSH_BUSY_SPREAD) for delay in SSH_BUSY_DELAYS_S)  # noqa: S311 - no secret


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
