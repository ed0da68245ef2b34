"""What became of a worker that hung up or fell silent, as the hive beside it says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rbee.base.errors import NodeError, RbeeError
from rbee.base.retries import ASK_TIMEOUT_S
from rbee.node.hive_client import HiveClient
from rbee.node.socket_http import HungUpError
from rbee_remote.protocol import ErrorCode, WorkerInfo, WorkerState


@dataclass(frozen=True, slots=True)
class HiveReport:
    """reached: whether the node said anything at all. worker: what the hive knows of it, None where it knows none, and
    where there is no hive any more."""

    reached: bool
    worker: WorkerInfo | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is to come of the worker any more: it failed, is being ended for that, or is not there."""
        if self.worker is None:
            return self.reached
        return self.worker.error is not None or self.worker.state is WorkerState.FAILED


async def hive_report(hive: HiveClient, worker_id: str) -> HiveReport:
    """Asks over the connection of `hive` as it is. Raises nothing that a network or a node can be the reason of."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return HiveReport(True, await hive.worker(worker_id))
    except NodeError as error:
        return HiveReport(error.code is ErrorCode.WORKER_GONE and not isinstance(error, HungUpError))
    except (RbeeError, TimeoutError):
        return HiveReport(False)
