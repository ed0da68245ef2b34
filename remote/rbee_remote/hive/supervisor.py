"""The hive's table of workers, and everything that changes it.

Rules
- One event loop, one writer: between a decision and the change it leads to there is no `await`.
- A worker is in the table from the moment it is decided on until its process is reaped; one that failed stays
  visible for a minute, so that those who waited for it learn why.
- A worker's own task (`_run`) is the only one that removes it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from rbee_remote.hive import planning, worker_calls
from rbee_remote.hive.fit import ggml_devices, resources, scheduler
from rbee_remote.hive.fit.ggml_devices import GgmlDevices, Question
from rbee_remote.hive.fit.meter import Job, Meter
from rbee_remote.hive.fit.scheduler import MakeRoom, NoMemory, NoSlot, Reuse, Spawn
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.need_table import make_needs
from rbee_remote.hive.planning import Plan
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import COMING, SERVING
from rbee_remote.hive.worker_process import WorkerProcesses
from rbee_remote.protocol import (
    ErrorCode,
    Fit,
    LeaseRequest,
    ModelInfo,
    ModelNeeds,
    NeedsRequest,
    RemoteError,
    SpawnRequest,
    StopRequest,
    WorkerOptions,
    WorkerState,
)
from rbee_remote.system.audit import Audit
from rbee_remote.system.caller import ANYBODY, Caller
from rbee_remote.system.changes import Changes
from rbee_remote.system.command import payload_command
from rbee_remote.system.gpu import Gpu
from rbee_remote.system.layout import Layout

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. check, check_in_use: between two checks of a worker's health, and while somebody waits for it.
    stall: without progress of a loading worker until it is ended. stopped: a process may be stopped by a signal for as
    long. failed_visible: see the rules above.
    """

    tick: float = 1.0
    check: float = 30.0
    check_in_use: float = 10.0
    stall: float = 300.0
    stopped: float = 10.0
    failed_visible: float = 60.0


class Supervisor:
    """Made inside `async with anyio.create_task_group()`; its tasks run there.

    worker_command: the argv that starts a worker, to which options are added. audit: None for one of its own.
    changed: wakes with each change of a worker, or of which there are.
    """

    def __init__(
        self,
        layout: Layout,
        catalog: Catalog,
        tasks: TaskGroup,
        *,
        timing: Timing = Timing(),
        worker_command: Sequence[str] | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._tasks = tasks
        self.timing = timing
        self.changed = Changes()
        self._workers: dict[str, WorkerRecord] = {}
        self._meter = Meter()
        self._ggml = GgmlDevices()
        self._audit = audit or Audit(layout)
        self._processes = WorkerProcesses(worker_command or payload_command("worker"), layout, self._audit, tasks)
        self.draining = False

    def has_read(self, model: ModelInfo) -> None:
        """How somebody else's file is now, of which workers may have been started."""
        for worker in self.live():
            if worker.key.model == model.model:
                worker.file_is(model.stamp, model.sha256)

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
        """A live worker that holds the file `path`, as its model's or an adapter's."""
        return next((worker for worker in self.live() if path in (worker.key.path, *worker.key.adapters)), None)

    async def preflight(self, request: SpawnRequest) -> Fit:
        """What the model needs and what it could have, idle workers of other models evicted.

        Raises RemoteError: MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE, RAM_EXHAUSTED, VRAM_EXHAUSTED, NODE_BUSY.
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
        while True:
            ggml = await self._ggml_gpus(request.options, {})
            table = make_needs(self._catalog, request, self.live(), self._meter, ggml)
            if not isinstance(table, Job):
                return table
            await self._meter.measure(table)

    async def _plan(self, request: SpawnRequest) -> Plan:
        """Nothing is awaited between the last look at the workers and the return."""
        while True:
            ggml = await self._ggml_gpus(request.options, request.env)
            plan = planning.make_plan(self._catalog, request, self.live(), self._meter, ggml)
            if not isinstance(plan, Job):
                return plan
            await self._meter.measure(plan)

    async def _ggml_gpus(self, options: WorkerOptions, env: Mapping[str, str]) -> tuple[Gpu, ...]:
        """Those that ggml has to be asked for, as they are with the workers that there are; nothing is awaited after
        the last look at these."""
        env = os.environ | env
        # In a thread: a driver that starts its GPUs, or hangs, must not keep everybody else waiting.
        there = await anyio.to_thread.run_sync(resources.that_answer, abandon_on_cancel=True)
        found = resources.gpus(env)
        cuda = any(gpu.vendor == "nvidia" for gpu in found)
        if not ggml_devices.has_to_be_asked(options, resources.runtime_backends(), cuda=cuda):
            return ()
        while True:
            question = Question.of(env, [(worker.id, worker.state) for worker in self.live()])
            if (known := self._ggml.known(question)) is not None:
                return ggml_devices.not_hidden(known, there, found, env)
            await self._ggml.ask(question)

    # --- changing -------------------------------------------------------------------------------------------

    async def ensure(self, request: SpawnRequest, caller: Caller = ANYBODY) -> tuple[WorkerRecord, bool]:
        """The worker for the request, and whether this call started it. It has a process, but need not serve yet, and
        stays for the caller's keep-alive.

        Raises what `preflight` raises, and RemoteError: WORKER_GONE when the hive is about to end, DEADLINE_EXCEEDED,
        DISK_FULL where a start cannot be recorded.
        """
        with anyio.move_on_after(request.timeout_s):
            return await self._ensure(request, caller)
        message = f"no worker for {request.model} could be started before the deadline"
        raise RemoteError(ErrorCode.DEADLINE_EXCEEDED, message, hint="allow more time with `--timeout`")

    async def _ensure(self, request: SpawnRequest, caller: Caller) -> tuple[WorkerRecord, bool]:
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
                    if await self._grant(worker, LeaseRequest(caller.keeper, request.keep_alive_s)):
                        return worker, False
                    await worker.gone.wait()
                case Spawn():
                    worker = self._spawn(plan, caller)
                    worker.want(request.timeout_s)
                    await worker.has_process.wait()
                    return worker, True
                case MakeRoom(evict, await_end):
                    leaving = [self._workers[worker_id] for worker_id in (*evict, *await_end)]
                    for worker_id in evict:
                        self._evict(self._workers[worker_id], request.model, caller)
                    for record in leaving:
                        await record.gone.wait()
                case NoSlot() | NoMemory():
                    raise planning.refusal(decision, plan)

    def _evict(self, worker: WorkerRecord, model: str, caller: Caller) -> None:
        _log.info("worker %s makes room for %s", worker.id, model)
        self._audit.note("worker.stop", caller, model=worker.key.model, worker=worker.id, reason=f"room for {model}")
        self._processes.begin_stop(worker, StopRequest())

    async def _grant(self, worker: WorkerRecord, lease: LeaseRequest) -> bool:
        """Have the worker stay for a keeper; False when it is about to end. One that starts is told in time."""
        if worker.state is WorkerState.STARTING:
            if worker.announce(lease):
                self._tasks.start_soon(self._announce, worker)
            return True
        if await worker_calls.grant(worker, lease) or worker.state in COMING:  # why a load fails, who follows it hears
            return True
        _log.info("worker %s is ending, keeper %s gets another", worker.id, lease.keeper)
        if worker.alive:
            self._processes.begin_stop(worker, StopRequest())
        return False

    async def _announce(self, worker: WorkerRecord) -> None:
        """Tell a worker, once it listens, of the keepers that asked for it before."""
        while worker.state is WorkerState.STARTING and not worker.gone.is_set():
            await worker.changed.wait()
        while worker.announced and not worker.gone.is_set():
            await worker_calls.grant(worker, worker.announced.pop(0))

    async def stop_if_idle(self, worker: WorkerRecord, request: StopRequest, caller: Caller) -> None:
        """End a worker that nobody has used for `request.only_idle_s` and that no other keeper's lease holds; return
        when its process is gone. The worker decides: a request can come to it at any moment.

        Raises RemoteError IN_USE, and nothing has changed.
        """
        if worker.state in COMING:
            raise worker_calls.in_use(worker, "it is loading")
        if worker.state in SERVING:
            await worker_calls.ask_to_end_if_idle(worker, request, caller)
            self._audit.note("gc", caller, model=worker.key.model, worker=worker.id)
        await self.stop(worker, replace(request, only_idle_s=None))

    async def stop(self, worker: WorkerRecord, request: StopRequest) -> None:
        """End a worker, and return when its process is gone. The stop goes on when the caller does not."""
        if worker.alive:
            self._processes.begin_stop(worker, request)
            await worker.gone.wait()

    def begin_stop_all(self, request: StopRequest) -> list[WorkerRecord]:
        """Take no more work, and begin to end every worker; those that still have to go."""
        self.draining = True
        leaving = self.live()
        for worker in leaving:
            self._processes.begin_stop(worker, request)
        return leaving

    async def stop_all(self, request: StopRequest) -> None:
        """Take no more work, and return when no worker is left. The workers end all at once."""
        for worker in self.begin_stop_all(request):
            await worker.gone.wait()

    def fail(self, worker: WorkerRecord, error: RemoteError, *, kill: bool = False) -> None:
        """End a worker that is of no use any more, for a reason that those who wait for it are told.

        kill: it cannot react to anything gentler.
        """
        _log.warning("worker %s: %s", worker.id, error.message)
        worker.give_up(error)
        if kill and worker.child:
            worker.child.kill_group()
        self._processes.begin_stop(worker, StopRequest(drain=False))

    def forget_failed(self, now: float) -> None:
        """Drop workers that failed longer ago than `timing.failed_visible`. now: of the monotonic clock."""
        for worker in self.workers():
            if worker.failed_at is not None and now - worker.failed_at >= self.timing.failed_visible:
                del self._workers[worker.id]
                self.changed.notify()

    def _spawn(self, plan: Plan, caller: Caller) -> WorkerRecord:
        worker_id = secrets.token_hex(8)
        head = {"keeper_head": plan.request.audit_head} if plan.request.audit_head else {}
        self._audit.record("worker.start", caller, model=plan.key.model, worker=worker_id, **head)
        worker = WorkerRecord(
            id=worker_id,
            key=plan.key,
            need=plan.need,
            placement=plan.placement,
            measured=plan.measured,
            keep_alive_s=plan.request.keep_alive_s,
            socket=self._layout.worker_socket(worker_id),
            log=self._layout.worker_log(worker_id),
            sha256=plan.model.sha256,
            stamp=plan.model.stamp,
            changed=Changes(whole=self.changed),
        )
        self._workers[worker_id] = worker
        self.changed.notify()
        self._tasks.start_soon(self._run, worker, plan, caller.keeper)
        return worker

    async def _run(self, worker: WorkerRecord, plan: Plan, keeper: str) -> None:
        shared = any(other is not worker and other.placement.device == "cpu" for other in self.live())
        try:
            if await self._processes.run(worker, plan, keeper=keeper, shared=shared):
                del self._workers[worker.id]
        finally:
            await self._processes.clear_away(worker)
