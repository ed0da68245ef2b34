"""A node in a scripted world: hive, workers, requests and their clients, on a clock that moves when somebody waits.

What decides is the real code: the worker's leases and keep-alive, the survey, the plan of `rbee gc`, and the tidying.
What is scripted is what they decide about: processes, sockets, signals, time.
"""

from __future__ import annotations

import heapq
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rbee.cleanup.actions import Action, DropRow, EndProcess, NodeSeen, Policy, StopWorker
from rbee.cleanup.plan import plan
from rbee.registry import WorkerRow
from rbee_remote.protocol import HiveInfo, TidyRequest, WorkerInfo, WorkerState
from rbee_remote.sweep import files
from rbee_remote.sweep.survey import survey
from rbee_remote.sweep.tidy import tidy
from rbee_remote.system.interface import Process
from rbee_remote.worker.service import keep_alive as keep_alive_module
from rbee_remote.worker.service.keep_alive import KeepAlive
from rbee_remote.worker.service.leases import Leases
from tests.doubles.system import ScriptedSystem

#: For how long a worker computes for a client that went away, and a hive looks at a worker that is stopped.
ORPHAN_S = 60.0
STOPPED_S = 20.0


@dataclass(eq=False)
class Request:
    keeper: str
    gone_at: float | None = None
    over: bool = False


@dataclass(eq=False)
class Worker:
    id: str
    process: Process
    hive: Process
    leases: Leases
    keep_alive: KeepAlive
    requests: list[Request] = field(default_factory=list)
    frozen_at: float | None = None


class Machine(ScriptedSystem):
    """The scripted system, whose time moves the world along."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def sleep(self, seconds: float) -> None:
        self._world.advance(seconds)

    def skip(self, seconds: float) -> None:
        self._now += seconds

    def ask(self, sockets: Sequence[str], timeout_s: float) -> Mapping[str, dict[str, Any] | None]:
        before = self._now
        answers = super().ask(sockets, timeout_s)
        waited, self._now = self._now - before, before
        self._world.advance(waited)
        return answers

    def signal(self, process: Process, number: int) -> bool:
        self._world.check_signal(process)
        return super().signal(process, number)

    def thaw(self, process: Process) -> None:
        super().signal(process, signal.SIGCONT)


class World:
    """One node and two keepers. `harm` collects what must never happen."""

    def __init__(self) -> None:
        self.machine = Machine(self)
        self.hive: Process | None = None
        self.hive_frozen = False
        self.workers: list[Worker] = []
        self.innocents: list[Process] = []
        self.rows: dict[str, dict[str, WorkerRow]] = {"a" * 16: {}, "b" * 16: {}}
        self.harm: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)

    # --- time -----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.machine.monotonic()

    def later(self, seconds: float, call: Callable[[], None]) -> SimpleNamespace:
        """As a loop's call_later."""
        handle = SimpleNamespace(canceled=False)
        handle.cancel = lambda: setattr(handle, "canceled", True)
        event = (self.now() + max(seconds, 0.0), next(self._order), lambda: None if handle.canceled else call())
        heapq.heappush(self._events, event)
        return handle

    def advance(self, seconds: float) -> None:
        end = self.now() + seconds
        while self._events and self._events[0][0] <= end:
            at, _, call = heapq.heappop(self._events)
            self.machine.skip(max(0.0, at - self.now()))
            call()
        self.machine.skip(max(0.0, end - self.now()))

    # --- what users and misfortune do ---------------------------------------------------------------------------

    def infer(self, keeper: str, seconds: float, keep_alive_s: float) -> None:
        """A request that takes so long, on a worker that is there or is started."""
        if self.hive is not None and self.hive_frozen:
            return
        if self.hive is None or not self.machine.runs(self.hive):
            self.hive, self.hive_frozen = self.machine.start("hive"), False
        worker = next((worker for worker in self.listed() if worker.frozen_at is None), None) or self._spawn(keeper)
        request = Request(keeper)
        worker.requests.append(request)
        worker.keep_alive.begin(keeper, keep_alive_s)
        worker.keep_alive.set_idle(False)
        self.machine.set_busy(worker.process, True)
        self.later(seconds, lambda: self._finish(worker, request))
        self.rows[keeper][worker.id] = self._row(worker)

    def clients_go(self, keeper: str) -> None:
        """The keeper is killed, or its connection is lost."""
        for worker in self.workers:
            for request in worker.requests:
                if request.keeper == keeper and request.gone_at is None:
                    request.gone_at = self.now()
                    self.later(ORPHAN_S, partial(self._give_up, worker, request))

    def clients_return(self, keeper: str) -> None:
        for worker in self.workers:
            for request in worker.requests:
                if request.keeper == keeper:
                    request.gone_at = None

    def kill_hive(self) -> None:
        if self.hive is not None:
            self.machine.end(self.hive)
            self.hive = None
            for worker in list(self.workers):
                self._look_after_hive(worker)

    def freeze_hive(self) -> None:
        if self.hive is not None and not self.hive_frozen:
            self.machine.freeze(self.hive)
            self.hive_frozen = True

    def thaw_hive(self) -> None:
        if self.hive is not None and self.hive_frozen:
            self.machine.thaw(self.hive)
            self.hive_frozen = False
            for worker in self.listed():
                self.later(STOPPED_S, partial(self._hive_ends_stopped, worker))

    def kill_worker(self, number: int) -> None:
        if self.workers:
            worker = self.workers[number % len(self.workers)]
            self.machine.end(worker.process)
            self._gone(worker)

    def freeze_worker(self, number: int) -> None:
        running = [worker for worker in self.workers if worker.frozen_at is None]
        if running:
            worker = running[number % len(running)]
            self.machine.freeze(worker.process)
            worker.frozen_at = self.now()
            self.later(STOPPED_S, lambda: self._hive_ends_stopped(worker))

    def thaw_worker(self, number: int) -> None:
        frozen = [worker for worker in self.workers if worker.frozen_at is not None]
        if frozen:
            worker = frozen[number % len(frozen)]
            self.machine.thaw(worker.process)
            worker.frozen_at = None
            self._settle(worker)
            self._look_after_hive(worker)

    def reboot(self) -> None:
        self.machine.reboot()
        self.hive, self.hive_frozen = None, False
        self.innocents.clear()
        for worker in list(self.workers):
            self._gone(worker)

    def innocent(self, number: int) -> None:
        """Somebody's process takes the pid that a row names, or looks a little like one of ours."""
        known = [row.pid for rows in self.rows.values() for row in rows.values()]
        pid = known[number % len(known)] if known else None
        if pid is not None and self.machine.find(pid) is None:
            argv = ("vim", f"{self.machine.home}/payloads/notes.zip", "worker")
            self.innocents.append(self.machine.start("", pid=pid, argv=argv))

    # --- gc -------------------------------------------------------------------------------------------------------

    def collect(self, keeper: str, older_than_s: float | None, meanwhile: Callable[[], None]) -> list[Action]:
        """`rbee gc` of a keeper; something may happen between its look and its deeds."""
        hive = self.hive if self.hive is not None and not self.hive_frozen else None
        workers = tuple(self._info(worker) for worker in self.listed()) if hive else ()
        rows = list(self.rows[keeper].values())
        machine = self.machine
        seen = NodeSeen(survey(machine, machine.home, machine.run_dir), self._hive_info(hive), workers)
        actions = plan("gpu1", seen, rows, Policy(keeper, older_than_s))
        meanwhile()
        for action in actions:
            match action:
                case StopWorker():
                    self._hive_stops(action, keeper)
                case DropRow():
                    self._drop(action, keeper)
        ended = tuple(action.process for action in actions if isinstance(action, EndProcess))
        if ended:
            tidy(machine, TidyRequest(machine.home, machine.run_dir, ended, (), patience_s=1.0))
            for worker in [worker for worker in self.workers if not machine.runs(worker.process)]:
                self._gone(worker)
        return actions

    def check_signal(self, process: Process) -> None:
        """Called for each signal that the clean-up sends."""
        if any(process.name == innocent.name for innocent in self.innocents):
            self.harm.append(f"pid {process.pid} is none of rbee's and got a signal")
        worker = next((worker for worker in self.workers if worker.process.name == process.name), None)
        if worker and worker.frozen_at is None:
            live = [request for request in worker.requests if not request.over]
            if live:
                self.harm.append(f"worker {worker.id} got a signal with {len(live)} requests open")
            elif self.machine.runs(worker.hive):
                self.harm.append(f"worker {worker.id} got a signal behind its hive's back")
            elif worker.leases.left_s() and not self._is_orphaned(worker):
                self.harm.append(f"worker {worker.id} got a signal before its leases were over")
        if self.hive is not None and process.name == self.hive.name:
            self.harm.append("the hive got a signal")

    # --- what the node does by itself -----------------------------------------------------------------------------

    def listed(self) -> list[Worker]:
        """The workers of the hive that runs."""
        return [worker for worker in self.workers if self.hive is not None and worker.hive.name == self.hive.name]

    def orphans(self) -> list[Worker]:
        return [worker for worker in self.workers if not self.machine.runs(worker.hive)]

    def _spawn(self, keeper: str) -> Worker:
        assert self.hive is not None
        name = f"{next(self._ids):016x}"
        process = self.machine.start("worker", instance=name, owner=self.hive)
        leases = Leases(300.0, clock=self.now)
        worker = Worker(
            name,
            process,
            self.hive,
            leases,
            KeepAlive(leases, stay=lambda: False, over=lambda: self._keep_alive_over(worker), changed=lambda: None),
        )
        worker.keep_alive.grant(keeper, 300.0)
        worker.keep_alive.loaded()
        self.workers.append(worker)
        return worker

    def _keep_alive_over(self, worker: Worker) -> None:
        if worker.frozen_at is None and worker in self.workers:
            if [request for request in worker.requests if not request.over]:
                self.harm.append(f"worker {worker.id} ended by itself with requests open")
            self.machine.end(worker.process)
            self._gone(worker)

    def _finish(self, worker: Worker, request: Request) -> None:
        """The answer is whole; a stopped worker gets there when it goes on."""
        if request.over or worker not in self.workers:
            return
        request.over = True
        self._settle(worker)

    def _give_up(self, worker: Worker, request: Request) -> None:
        if request.gone_at is not None and self.now() - request.gone_at >= ORPHAN_S:
            self._finish(worker, request)

    def _settle(self, worker: Worker) -> None:
        """Take the requests out that are over, as far as the worker can."""
        if worker.frozen_at is not None or worker not in self.workers:
            return
        for request in [request for request in worker.requests if request.over]:
            worker.requests.remove(request)
            worker.keep_alive.end(request.keeper)
        if not worker.requests:
            self.machine.set_busy(worker.process, False)
            if not self.machine.runs(worker.process):  # it was asked to end after this one
                self._gone(worker)
                return
            worker.keep_alive.set_idle(True)
            self._look_after_hive(worker)

    def _look_after_hive(self, worker: Worker) -> None:
        """A worker whose hive is gone ends after its open requests."""
        if worker.frozen_at is None and worker in self.workers and not worker.requests and self._is_orphaned(worker):
            self.machine.end(worker.process)
            self._gone(worker)

    def _is_orphaned(self, worker: Worker) -> bool:
        return not self.machine.runs(worker.hive)

    def _hive_ends_stopped(self, worker: Worker) -> None:
        stopped = worker.frozen_at is not None and self.now() - worker.frozen_at >= STOPPED_S
        if stopped and worker in self.listed() and not self.hive_frozen:
            self.machine.end(worker.process)
            self._gone(worker)

    def _hive_stops(self, action: StopWorker, keeper: str) -> None:
        worker = next((worker for worker in self.listed() if worker.id == action.worker_id), None)
        if worker is None or worker.frozen_at is not None or self.hive_frozen:
            return
        if not worker.keep_alive.in_use(action.only_idle_s, keeper):
            others = worker.leases.left_s(without=keeper)
            if worker.requests or others:
                self.harm.append(f"worker {worker.id} was stopped with a request or another keeper's lease")
            self.machine.end(worker.process)
            self._gone(worker)

    def _drop(self, action: DropRow, keeper: str) -> None:
        row = self.rows[keeper].pop(action.worker_id)
        if any(worker.id == row.worker_id for worker in self.listed()):
            self.harm.append(f"the registry's row of worker {row.worker_id} was dropped while its hive knows it")

    def _gone(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.keep_alive.set_idle(False)  # its clock ends with it

    # --- how it looks from outside -------------------------------------------------------------------------------

    def _hive_info(self, hive: Process | None) -> HiveInfo | None:
        if hive is None:
            return None
        machine = self.machine
        return HiveInfo(
            protocol=1, version="0", payload="ab" * 8, instance="0" * 16, pid=hive.pid, start_ticks=hive.start_ticks,
            boot_id=machine.boot_id(), started_at=0.0, home=machine.home, socket=f"{machine.run_dir}/hive.sock",
            workers=len(self.listed()), draining=False,
        )  # fmt: skip

    def _info(self, worker: Worker) -> WorkerInfo:
        busy = bool(worker.requests)
        return WorkerInfo(
            id=worker.id, model="m", state=WorkerState.BUSY if busy else WorkerState.IDLE, backend="cpu", device="cpu",
            socket=f"{self.machine.run_dir}/worker-{worker.id}.sock", pid=worker.process.pid,
            start_ticks=worker.process.start_ticks, boot_id=self.machine.boot_id(), ctx=512, slots=4,
            slots_free=0 if busy else 4, keep_alive_s=worker.leases.keep_alive_s(), created_at=0.0,
            idle_s=worker.keep_alive.idle_s, leases=worker.leases.told(),
        )  # fmt: skip

    def _row(self, worker: Worker) -> WorkerRow:
        info = self._info(worker)
        return WorkerRow(
            node="gpu1", worker_id=info.id, model=info.model, backend="cpu", device="cpu", state=info.state.value,
            socket=info.socket, slots=4, slots_free=4, ctx=512, keep_alive_s=info.keep_alive_s, boot_id=info.boot_id,
            pid=info.pid, start_ticks=info.start_ticks, hive_instance="0" * 16, payload="ab" * 8, created_at="",
            last_seen_at="", loaded={}, secret="5ec2e75f" * 4,
        )  # fmt: skip


@contextmanager
def worlds_clock(world: World) -> Iterator[None]:
    """The keep-alive's timers are the world's, and so are files, of which there are none."""
    loop = SimpleNamespace(get_running_loop=lambda: SimpleNamespace(call_later=world.later))
    clock = SimpleNamespace(monotonic=world.now)
    with (
        mock.patch.object(keep_alive_module, "asyncio", loop),
        mock.patch.object(keep_alive_module, "time", clock),
        mock.patch("os.path.realpath", os.path.abspath),  # of its paths none is there
        mock.patch.object(files, "scan", return_value=()),
    ):
        yield
