"""Ending one worker's process, and what is to do once it has ended."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from rbee_remote.hive import worker_calls
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import StopRequest, keeper_socket
from rbee_remote.system.layout import Layout

_log = logging.getLogger(__name__)


async def end(worker: WorkerRecord, request: StopRequest) -> None:
    """The ladder: asked to shut down (and waited for while it drains), SIGTERM, SIGKILL."""
    if worker.child is None:
        return
    if request.drain and await worker_calls.ask_to_shut_down(worker, request):
        await worker.drained()
        if await worker.child.gone_within(request.patience_s):
            return
    elif request.drain and not worker.socket.exists():
        # The run folder was cleaned away: nobody comes in any more, and who is in may finish.
        await worker.drained()
    await worker.child.end(request.patience_s)


async def clear_away(worker: WorkerRecord, layout: Layout) -> None:
    """Returns when no process is left, its memory is free, and its sockets are gone."""
    if worker.child is not None:
        if worker.child.running:
            await worker.child.end(StopRequest().patience_s)
        if not await worker.child.freed():
            _log.warning("worker %s has ended, but a GPU's driver still holds memory for it", worker.id)
    sockets = [worker.socket, Path(keeper_socket(str(worker.socket)))]
    if worker.child is not None:
        sockets.append(layout.staged_socket(worker.child.identity.pid))
    for socket in sockets:
        with contextlib.suppress(OSError):  # a folder that cannot be written: the next clean-up sees to it
            socket.unlink()
