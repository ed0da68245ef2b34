"""The hive's table of workers, and everything that changes it.

Rules
- One event loop, one writer: between a decision and the change it leads to there is no `await`.
- A worker is in the table from the moment it is decided on until its process is reaped; one that failed stays
  visible for a minute, so that those who waited for it learn why.
- A worker's own task (`_run`) is the only one that takes it out.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio
from anyio.abc import TaskGroup

from rbee_remote.command import payload_command
from rbee_remote.hive import planning, scheduler, watch
from rbee_remote.hive.catalog import Catalog
from rbee_remote.hive.layout import Layout
from rbee_remote.hive.logs import last_lines
from rbee_remote.hive.meter import Job, Meter
from rbee_remote.hive.need_table import make_needs
from rbee_remote.hive.planning import Plan
from rbee_remote.hive.process import Child, describe_exit, spinning
from rbee_remote.hive.scheduler import MakeRoom, NoMemory, NoSlot, Reuse, Spawn
from rbee_remote.hive.worker_record import SERVING, WorkerRecord
from rbee_remote.protocol import (
    ErrorCode,
    Fit,
    ModelNeeds,
    NeedsRequest,
    ProtocolError,
    RemoteError,
    SpawnRequest,
    StopRequest,
    WorkerConfig,
    WorkerState,
    WorkerStatus,
    decode,
    encode,
)

_log = logging.getLogger(__name__)

_CRASH_LOG_LINES = 10
_AFTER_CRASH = "rbee logs NODE --worker ID shows more; a smaller context needs less memory"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. stall: without progress of a loading worker until it is ended. failed_visible: see the rules above."""

    tick: float = 1.0
    check: float = 30.0
    stall: float = 300.0
    failed_visible: float = 60.0


class Supervisor:
    """Made inside `async with anyio.create_task_group()`; its tasks run there.

    worker_command: the argv that starts a worker, to which `--status-fd=N` is added.
    """

    def __init__(
        self,
        layout: Layout,
        catalog: Catalog,
        tasks: TaskGroup,
        *,
        timing: Timing = Timing(),
        worker_command: Sequence[str] | None = None,
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._tasks = tasks
        self.timing = timing
        self._command = list(worker_command or payload_command("worker"))
        self._workers: dict[str, WorkerRecord] = {}
        self._meter = Meter()
        self.draining = False

    # --- asking ---------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerRecord]:
        return list(self._workers.values())

    def live(self) -> list[WorkerRecord]:
        return [worker for worker in self._workers.values() if worker.alive]

    def find(self, worker: str) -> WorkerRecord:
        """Raises RemoteError WORKER_GONE."""
        found = self._workers.get(worker)
        if found is None:
            raise RemoteError(ErrorCode.WORKER_GONE, f"there is no worker {worker} on this node")
        return found

    def uses(self, path: str) -> WorkerRecord | None:
        """A live worker that holds the model file `path`."""
        return next((worker for worker in self.live() if worker.key.path == path), None)

    async def preflight(self, request: SpawnRequest) -> Fit:
        """What the model needs and what it could have, idle workers of other models evicted.

        Raises RemoteError: MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE, RAM_EXHAUSTED, VRAM_EXHAUSTED, ALL_SLOTS_BUSY.
        """
        plan = await self._plan(request)
        live = self.live()
        decision = scheduler.decide(planning.make_demand(plan, live), [worker.view() for worker in live])
        if isinstance(decision, (NoSlot, NoMemory)):
            raise planning.refusal(decision, plan)
        return planning.make_fit(plan, live)

    async def needs(self, request: NeedsRequest) -> ModelNeeds:
        """What a model needs at several context sizes and slot counts.

        Raises RemoteError: MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE.
        """
        while isinstance(table := make_needs(self._catalog, request, self.live(), self._meter), Job):
            await self._meter.measure(table)
        return table

    async def _plan(self, request: SpawnRequest) -> Plan:
        """Nothing is awaited between the last look at the workers and the return."""
        while isinstance(plan := planning.make_plan(self._catalog, request, self.live(), self._meter), Job):
            await self._meter.measure(plan)
        return plan

    # --- changing -------------------------------------------------------------------------------------------

    async def ensure(self, request: SpawnRequest) -> tuple[WorkerRecord, bool]:
        """The worker for the request, and whether this call started it. It has a process, but need not serve yet.

        Raises what `preflight` raises, and RemoteError: WORKER_GONE when the hive is about to end, DEADLINE_EXCEEDED.
        """
        with anyio.move_on_after(request.timeout_s):
            return await self._ensure(request)
        message = f"no worker for {request.model} could be started before the deadline"
        raise RemoteError(ErrorCode.DEADLINE_EXCEEDED, message, hint="give it more with `--timeout`")

    async def _ensure(self, request: SpawnRequest) -> tuple[WorkerRecord, bool]:
        while True:
            plan = await self._plan(request)
            if self.draining:
                raise RemoteError(ErrorCode.WORKER_GONE, "the hive is stopping", hint="try again in a moment")
            live = self.live()
            decision = scheduler.decide(planning.make_demand(plan, live), [worker.view() for worker in live])
            match decision:
                case Reuse(worker_id):
                    worker = self._workers[worker_id]
                    worker.want(request.timeout_s)
                    await worker.has_process.wait()
                    return worker, False
                case Spawn():
                    worker = self._spawn(plan)
                    worker.want(request.timeout_s)
                    await worker.has_process.wait()
                    return worker, True
                case MakeRoom(evict, await_end):
                    leaving = [self._workers[worker_id] for worker_id in (*evict, *await_end)]
                    for worker_id in evict:
                        _log.info("worker %s makes room for %s", worker_id, request.model)
                        self._begin_stop(self._workers[worker_id], StopRequest())
                    for record in leaving:
                        await record.gone.wait()
                case NoSlot() | NoMemory():
                    raise planning.refusal(decision, plan)

    async def stop(self, worker: WorkerRecord, request: StopRequest) -> None:
        """End a worker, and return when its process is gone. The stop goes on when the caller does not."""
        if worker.alive:
            self._begin_stop(worker, request)
            await worker.gone.wait()

    def begin_stop_all(self, request: StopRequest) -> list[WorkerRecord]:
        """Take no more work, and begin to end every worker; those that still have to go."""
        self.draining = True
        leaving = self.live()
        for worker in leaving:
            self._begin_stop(worker, request)
        return leaving

    async def stop_all(self, request: StopRequest) -> None:
        """Take no more work, and return when no worker is left. The workers end all at once."""
        for worker in self.begin_stop_all(request):
            await worker.gone.wait()

    def fail(self, worker: WorkerRecord, error: RemoteError) -> None:
        """End a worker that is of no use any more, for a reason that those who wait for it are told."""
        _log.warning("worker %s: %s", worker.id, error.message)
        worker.error = error
        self._begin_stop(worker, StopRequest(drain=False))

    def forget_failed(self, now: float) -> None:
        """Drop workers that failed longer ago than `timing.failed_visible`. now: of the monotonic clock."""
        for worker in self.workers():
            if worker.failed_at is not None and now - worker.failed_at >= self.timing.failed_visible:
                del self._workers[worker.id]

    # --- one worker's life ----------------------------------------------------------------------------------

    def _spawn(self, plan: Plan) -> WorkerRecord:
        worker_id = secrets.token_hex(8)
        worker = WorkerRecord(
            id=worker_id,
            key=plan.key,
            need=plan.need,
            placement=plan.placement,
            measured=plan.measured,
            keep_alive_s=plan.request.keep_alive_s,
            socket=self._layout.worker_socket(worker_id),
            log=self._layout.worker_log(worker_id),
        )
        self._workers[worker_id] = worker
        self._tasks.start_soon(self._run, worker, plan)
        return worker

    async def _run(self, worker: WorkerRecord, plan: Plan) -> None:
        """From the start of the process to its end; whatever happens, the record reaches its last state."""
        _log.info("starting worker %s for %s, %d MB", worker.id, worker.key.model, worker.need.total_mb)
        try:
            worker.child = await self._start(worker, plan)
            worker.has_process.set()
            worker.touch()
            async for line in worker.child.statuses():
                self._on_status(worker, line)
            status = await worker.child.wait()
            self._on_exit(worker, status)
        except Exception as error:
            # One worker's trouble, a bug of ours included, must not end the others: they share this task group.
            _log.exception("worker %s could not be run", worker.id)
            worker.error = RemoteError(ErrorCode.WORKER_CRASHED, f"the worker could not be run: {error}")
            self._fail_record(worker)
        finally:
            if worker.child is not None and worker.child.running:
                with anyio.CancelScope(shield=True):
                    await worker.child.end(StopRequest().patience_s)
            worker.socket.unlink(missing_ok=True)
            worker.has_process.set()
            worker.gone.set()
            worker.touch()

    async def _start(self, worker: WorkerRecord, plan: Plan) -> Child:
        config = WorkerConfig(
            id=worker.id,
            model=worker.key.model,
            path=worker.key.path,
            socket=str(worker.socket),
            options=worker.key.options,
            ctx=worker.ctx,
            slots=worker.slots,
            keep_alive_s=worker.keep_alive_s,
        )
        others = any(other is not worker and other.placement.device == "cpu" for other in self.live())
        env = spinning(plan.env, shared=others)
        return await Child.start(self._command, config=json.dumps(encode(config)).encode(), env=env, log=worker.log)

    def _on_status(self, worker: WorkerRecord, line: bytes) -> None:
        try:
            status = decode(WorkerStatus, json.loads(line))
        except (ProtocolError, ValueError) as error:
            _log.warning("worker %s wrote a status that is none: %s", worker.id, error)
            return
        before = worker.state
        worker.apply(status)
        if worker.state is not before:
            _log.info("worker %s is %s", worker.id, worker.state.value)

    def _on_exit(self, worker: WorkerRecord, status: int) -> None:
        ended_well = status == 0 and worker.state in SERVING
        asked_for = worker.state is WorkerState.STOPPING
        if worker.error is None and (asked_for or ended_well):
            _log.info("worker %s has ended", worker.id)
            del self._workers[worker.id]
            worker.state = WorkerState.STOPPING
            return
        if worker.error is None:
            details = {**describe_exit(status), "log": str(worker.log), "last_lines": _tail(worker)}
            message = f"the worker for {worker.key.model} ended unexpectedly"
            worker.error = RemoteError(ErrorCode.WORKER_CRASHED, message, hint=_AFTER_CRASH, details=details)
        _log.error("worker %s failed: %s %s", worker.id, worker.error.message, worker.error.details)
        self._fail_record(worker)

    def _fail_record(self, worker: WorkerRecord) -> None:
        worker.state, worker.failed_at = WorkerState.FAILED, time.monotonic()

    # --- ending one -----------------------------------------------------------------------------------------

    def _begin_stop(self, worker: WorkerRecord, request: StopRequest) -> None:
        """From now on the worker takes no further request of the hive; a second call can only make it faster."""
        first = worker.state is not WorkerState.STOPPING
        drain = request.drain and worker.state in SERVING
        worker.state = WorkerState.STOPPING
        worker.touch()
        if first or not request.drain:
            self._tasks.start_soon(self._end, worker, replace(request, drain=drain))

    async def _end(self, worker: WorkerRecord, request: StopRequest) -> None:
        """The ladder: asked to shut down (and waited for while it drains), SIGTERM, SIGKILL."""
        await worker.has_process.wait()
        if worker.child is None:
            return
        if request.drain and await watch.ask_to_shut_down(worker, request):
            await watch.drained(worker)
            if await worker.child.gone_within(request.patience_s):
                return
        await worker.child.end(request.patience_s)


def _tail(worker: WorkerRecord) -> list[str]:
    return last_lines(worker.log, _CRASH_LOG_LINES).decode("utf-8", "replace").splitlines()
