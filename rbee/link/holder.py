"""The process that is left behind by a command over SSH, and holds its connection for the next ones.

As ssh's ControlPersist, which Ansible uses: it ends a while after its last use. Besides, it ends

- when the shell, or whatever else leads the session that it came from, is gone: like the terminal's own processes, and
  not like a daemon's. What cannot be told (a leader outside of this container) is left to the time limit;
- when its home or its socket is gone, another version of rbee asks for something, or `rbee link stop` does;
- at once when it holds nothing: its connection broke, or could not be had without a question to the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rbee.base.settings import Settings, keeper_id
from rbee.context import Context
from rbee.inventory import load
from rbee.link.leaving import Plan
from rbee.link.server import Commands, LinkServer, LinkTakenError
from rbee.node.pool import Pool
from rbee.registry import Registry

#: Between two looks at whether it is time to end.
_LOOK_EVERY_S = 0.5


async def hold(plan: Plan, commands: Commands) -> None:
    """Be the holder, until it is time to end. Raises ConfigError; does nothing where there is another link."""
    settings = Settings.from_environment()
    context = Context(
        settings=settings,
        inventory=load(Path(plan.inventory) if plan.inventory else None, settings),
        open_registry=lambda: Registry.open(settings.registry_path),
        keeper_id=keeper_id(settings),
    )
    pool = Pool(context, idle_s=plan.persist_s)
    try:
        async with LinkServer(context, pool, commands, persist_s=plan.persist_s) as server:
            server.hold(context.inventory.node(plan.node))
            with _told_of_the_end(server.asked_to_end, plan.leader):
                await _until_over(server, pool, plan)
    except LinkTakenError:
        pass
    finally:
        await pool.aclose()


async def _until_over(server: LinkServer, pool: Pool, plan: Plan) -> None:
    look_every_s = min(_LOOK_EVERY_S, plan.persist_s / 4)
    while server.is_in_place():
        if server.idle_s() >= plan.persist_s or not (server.is_busy or pool.held()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_every_s):
                await server.asked_to_end.wait()
            return


@contextmanager
def _told_of_the_end(over: asyncio.Event, leader: int) -> Iterator[None]:
    """Sets `over` at SIGTERM, and when the process `leader` is gone."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    descriptor = _descriptor_of(leader)
    if leader and descriptor is None:
        over.set()
    elif descriptor:
        loop.add_reader(descriptor, over.set)
    try:
        yield
    finally:
        if descriptor:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _descriptor_of(process: int) -> int | None:
    """Readable when the process ends; 0 where the system has no such thing, None where the process is gone."""
    if not process or not hasattr(os, "pidfd_open"):
        return 0
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
