"""One worker's life: its process is started, followed by what it says, ended, and cleared away.

Rules
- Whatever happens in it, the record reaches its last state, and no other worker is touched by it.
- Its end is an escalation: asked to shut down (and waited for while it drains), SIGTERM, SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from rbee_remote.hive import worker_calls, worker_errors
from rbee_remote.hive.planning import Plan
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import (
    ErrorCode,
    RemoteError,
    StopRequest,
    WorkerConfig,
    WorkerStatus,
    decode,
    encode,
    keeper_socket,
)
from rbee_remote.system.audit import Audit
from rbee_remote.system.child import Child, spinning
from rbee_remote.system.identity import own_tag
from rbee_remote.system.layout import Layout

_log = logging.getLogger(__name__)


class WorkerProcesses:
    """Of all workers of a hive. command: the argv that starts a worker, to which options are added."""

    def __init__(self, command: Sequence[str], layout: Layout, audit: Audit, tasks: TaskGroup) -> None:
        self._command = command
        self._layout = layout
        self._audit = audit
        self._tasks = tasks

    async def run(self, worker: WorkerRecord, plan: Plan, *, keeper: str, shared: bool) -> bool:
        """From the start of the process to its end; False where it failed, and those who wait for it are to learn why.
        `clear_away` is to follow.

        keeper: whose lease is the first. shared: whether it shares the processor's cores with another worker.
        """
        _log.info("starting worker %s for %s, %d MB", worker.id, worker.key.model, worker.need.total_mb)
        try:
            worker.start(await self._launch(worker, plan, keeper=keeper, shared=shared))
            assert worker.child is not None
            async for line in worker.child.statuses():
                self._on_status(worker, line)
            return self._on_exit(worker, await worker.child.wait())
        except Exception as error:
            # One worker's trouble, a bug of ours included, must not end the others: they share a task group.
            _log.exception("worker %s could not be run", worker.id)
            worker.give_up(RemoteError(ErrorCode.WORKER_CRASHED, f"the worker could not be run: {error}"))
            self._on_failure(worker)
            return False

    async def clear_away(self, worker: WorkerRecord) -> None:
        """Returns when no process is left, its memory is free, and its sockets are gone."""
        with anyio.CancelScope(shield=True):
            await self._clear_away(worker)
        worker.leave()

    def begin_stop(self, worker: WorkerRecord, request: StopRequest) -> None:
        """From now on the worker takes no further request of the hive; a second call can only make it faster."""
        if worker.begin_stop(drain=request.drain):
            self._tasks.start_soon(_end, worker, replace(request, drain=worker.draining))

    async def _launch(self, worker: WorkerRecord, plan: Plan, *, keeper: str, shared: bool) -> Child:
        """Raises OSError."""
        config = WorkerConfig(
            id=worker.id,
            model=worker.key.model,
            path=worker.key.path,
            socket=str(worker.socket),
            options=plan.worker_options,
            ctx=worker.ctx,
            slots=worker.slots,
            keep_alive_s=worker.keep_alive_s,
            keeper=keeper,
            home=str(self._layout.home),
            secret=worker.secret,
            sandbox=plan.request.sandbox,
            adapters=plan.adapters,
        )
        # For the process list: a clean-up knows by this what the process is, and where it belongs, without a hive.
        tags = [f"--id={worker.id}", own_tag(), f"--home={self._layout.home}", f"--run-dir={self._layout.run_dir}"]
        env = spinning(plan.env, shared=shared)
        return await Child.start(
            [*self._command, *tags], config=json.dumps(encode(config)).encode(), env=env, log=worker.log
        )

    def _on_status(self, worker: WorkerRecord, line: bytes) -> None:
        before = worker.state
        try:
            status = decode(WorkerStatus, json.loads(line))
            for served in status.served:
                self._audit.served(served, model=worker.key.model, worker=worker.id)
            worker.apply(status)
        except ValueError as error:  # no JSON, a ProtocolError, or an ImpossibleEvent
            _log.warning("worker %s wrote an invalid status: %s", worker.id, error)
        if worker.state is not before:
            _log.info("worker %s is %s", worker.id, worker.state.value)

    def _on_exit(self, worker: WorkerRecord, status: int) -> bool:
        if worker.exited(status):
            _log.info("worker %s has ended", worker.id)
            self._audit.note("worker.end", model=worker.key.model, worker=worker.id)
            return True
        if worker.error is None:
            worker.give_up(worker_errors.crashed(worker, status))
        self._on_failure(worker)
        return False

    def _on_failure(self, worker: WorkerRecord) -> None:
        assert worker.error is not None
        _log.error("worker %s failed: %s %s", worker.id, worker.error.message, worker.error.details)
        worker.failed()
        reason = worker.error.code.value
        self._audit.note("worker.crash", model=worker.key.model, worker=worker.id, reason=reason)

    async def _clear_away(self, worker: WorkerRecord) -> None:
        sockets = [worker.socket, Path(keeper_socket(str(worker.socket)))]
        if worker.child is not None:
            if worker.child.running:
                await worker.child.end(StopRequest().patience_s)
            if not await worker.child.freed():
                _log.warning("worker %s has ended, but a GPU's driver still holds memory for it", worker.id)
            sockets.append(self._layout.staged_socket(worker.child.identity.pid))
        for socket in sockets:
            with contextlib.suppress(OSError):  # a folder that cannot be written: the next clean-up sees to it
                socket.unlink()


async def _end(worker: WorkerRecord, request: StopRequest) -> None:
    await worker.has_process.wait()
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
