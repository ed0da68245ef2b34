"""A hive that runs and does not answer: what to do about it, and how it is ended without its help.

It may be stopped, or wait for a disk; the node may swap. So nothing but `rbee hive stop --now` ends it.
"""

from __future__ import annotations

import math

from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Notice
from rbee.node.session import NodeSession
from rbee.node.traces import end_script
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.sweep import HIVE_COMMANDS

#: Seconds, beyond the patience after each signal, for a node that may swap.
END_TIMEOUT_S = 120.0


def does_not_answer(node: str, why: ConnectError | NodeError) -> ConnectError:
    return ConnectError(
        ErrorCode.CONNECTION_TIMEOUT,
        f"the hive on {node} runs but does not answer",
        hint=f"if the node swaps, try again later; `rbee hive stop {node} --now` ends the hive and its workers by "
        "signals, and the next command starts another",
        details={"reason": why.message},
    )


async def end_by_signals(session: NodeSession, *, patience_s: float) -> None:
    """End the hive and all that belongs to it: SIGTERM, then SIGKILL, each with that much time to take effect.

    Raises NodeError CLEANUP_FAILED for what is there even then.
    """
    session.emit(Notice(f"the hive on {session.node.name} does not answer: ending it and its workers by signals"))
    await session.connection.reopen(session.emit)  # the silence may have been this one's
    script = end_script(await session.probe(), math.ceil(patience_s), HIVE_COMMANDS)
    result = await session.connection.run(script, timeout=2 * patience_s + END_TIMEOUT_S)
    left = [line.split() for line in result.stdout.decode(errors="replace").splitlines() if line.strip()]
    if result.status or left:
        pids = ", ".join(words[0] for words in left)
        raise NodeError(
            ErrorCode.CLEANUP_FAILED,
            f"the hive on {session.node.name} and what belongs to it could not be ended",
            hint="it may wait for a disk or a driver that hangs; try again later",
            details={"pids": pids} if pids else {"said": result.stderr.strip()[-300:]},
        )
