"""The use case behind `rbee logs`."""

from __future__ import annotations

import re
from collections.abc import Callable

from rbee.base.errors import NodeError, UsageError
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import open_session
from rbee.transport.connection import quote
from rbee_remote.protocol import ErrorCode


async def logs(
    context: Context, node: Node, *, worker: str | None, lines: int, follow: bool, write: Callable[[bytes], None]
) -> None:
    """Hand the last lines of the hive's log, or of a worker's, to `write`; with `follow` until canceled.

    worker: an id or its beginning. Raises UsageError for a malformed one, NodeError when there is no such log.
    """
    if worker is not None and not re.fullmatch(r"[0-9a-f]{1,16}", worker):
        raise UsageError(f"{worker!r} is not a worker id", hint="`rbee workers list` shows the ids")
    async with open_session(context, node) as session:
        home = (await session.probe()).home
        name = f"worker-{worker}*.log" if worker else "hive.log"
        script = (
            f"cd {quote(f'{home}/log')} 2>/dev/null || exit 0\n"
            f"set -- {name}\n"
            '[ -f "$1" ] || exit 0\n'
            "echo found\n"
            f'exec tail -n {lines:d} {"-f" if follow else ""} "$1"'
        )
        async with session.connection.stream_script(script) as output:
            found = False
            async for line in output:
                if found:
                    write(line + b"\n")
                found = True
        if not found:
            what = f"of a worker {worker}" if worker else "of a hive"
            raise NodeError(
                ErrorCode.LOG_NOT_FOUND,
                f"there is no log {what} on {node.name}",
                hint="`rbee workers list` shows the ids" if worker else "the first `rbee infer` starts one there",
            )
