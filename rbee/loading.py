"""Phase 7: a worker that loads, watched until it serves."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from rbee.answer import CANCEL_TIMEOUT_S
from rbee.deadline import Deadline
from rbee.errors import ConnectError, NodeError, RbeeError
from rbee.events import Emit, Progress
from rbee.hive_client import HiveClient
from rbee_remote.protocol import ErrorCode, RemoteError, StopRequest, WorkerInfo, WorkerState


async def until_ready(hive: HiveClient, info: WorkerInfo, deadline: Deadline, emit: Emit) -> WorkerInfo:
    """Wait for a worker that loads; whoever waits in vain gives it up.

    Raises NodeError: what the hive says of one that failed, WORKER_GONE for one that somebody stopped.
    """
    if info.state in {WorkerState.STARTING, WorkerState.LOADING}:
        follower = uuid.uuid4().hex
        try:
            async with hive.worker_states(info.id, follower=follower) as states:
                async for state in states:
                    info = state
                    emit(Progress("load", "loading", 100 * info.progress, 100, "percent"))
        except (NodeError, ConnectError):
            raise
        except BaseException:  # Ctrl-C, a deadline, a stdout that is closed: we want it no more
            if not deadline.passed:  # the hive has the same deadline
                await _give_up(hive, info.id, follower)
            raise
    if info.state is WorkerState.FAILED:
        raise NodeError.from_remote(RemoteError.decode({"error": info.error}))
    if info.state in {WorkerState.STARTING, WorkerState.LOADING, WorkerState.STOPPING}:
        raise NodeError(ErrorCode.WORKER_GONE, f"the worker is {info.state.value}", hint="run it again")
    return info


async def _give_up(hive: HiveClient, worker_id: str, follower: str) -> None:
    """Stop a load that nobody else waits for. Best effort: such a worker ends after its keep-alive anyway."""
    with contextlib.suppress(RbeeError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await hive.stop_worker(worker_id, StopRequest(drain=False, patience_s=2.0, follower=follower))
