"""Phase 7: a worker that loads, watched until it serves."""

from __future__ import annotations

import uuid

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Emit, Progress
from rbee.infer.cancel import tell
from rbee.node.hive_client import HiveClient
from rbee_remote.protocol import ErrorCode, RemoteError, StopRequest, WorkerInfo, WorkerState


async def until_ready(node: str, hive: HiveClient, info: WorkerInfo, deadline: Deadline, emit: Emit) -> WorkerInfo:
    """Wait for a worker that loads on `node`; whoever waits in vain gives it up.

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
                await _give_up(node, hive, info.id, follower, emit)
            raise
    if info.state is WorkerState.FAILED:
        raise NodeError.from_remote(RemoteError.decode({"error": info.error}))
    if info.state in {WorkerState.STARTING, WorkerState.LOADING, WorkerState.STOPPING}:
        raise NodeError(ErrorCode.WORKER_GONE, f"the worker is {info.state.value}", hint="run the command again")
    return info


async def _give_up(node: str, hive: HiveClient, worker_id: str, follower: str, emit: Emit) -> None:
    """Stop a load that nobody else waits for."""

    async def telling() -> None:
        await hive.stop_worker(worker_id, StopRequest(drain=False, patience_s=2.0, follower=follower))

    await tell(node, telling(), emit, otherwise="the worker ends after its keep-alive")
