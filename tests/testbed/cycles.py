"""Connect, infer, drop, again and again, in all the ways in which that ends; and what it leaves open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import psutil

from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import Event, Notice, Retry, Token
from rbee.infer.infer import infer
from rbee.infer.request import InferRequest
from rbee_remote.protocol import Message
from tests.testbed.loopback import Loopback

IN_FLIGHT = 3
#: Every so many cycles the keeper is a process of its own.
PROCESS_EVERY = 20
#: Seconds until what was dropped has been noticed everywhere: a killed keeper's connection, its request.
SETTLE_S = 30.0
#: rbee, once the interpreter is up and has said so: one that is interrupted before that ends with 1, whatever it runs.
BEGIN = "import runpy; print(flush=True); runpy.run_module('rbee', run_name='__main__', alter_sys=True)"
#: Of a cycle that does not end.
CYCLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What is open at a quiet moment. private_mb: memory that is a process's alone. files: in both homes.

    sockets: of all kinds. node_*: hive and workers together.
    """

    cycles: int
    node_processes: int
    node_fds: int
    node_sockets: int
    node_private_mb: float
    ssh_processes: int
    keeper_fds: int
    keeper_sockets: int
    keeper_tasks: int
    keeper_private_mb: float
    files: int


FIGURES = tuple(each.name for each in fields(Sample) if each.name != "cycles")


@dataclass
class Cycles:
    """node: what is connected to. ended: how many cycles ended how. broken: those that ended as they should not.

    mended: in how many the connection was lost on the way and made anew. One that is cut at each try ends a cycle, too.
    """

    node: Loopback
    model: Path
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    ended: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    mended: int = 0

    async def warm_up(self) -> None:
        """The payload is there, hive and worker run, the modules are imported: what is open from now on stays open."""
        for way in ("end", "cancel", "cut", "process end"):
            await self.one(way)

    async def run(self, first: int, last: int) -> None:
        """The cycles with these numbers, the last one left out; some at once."""
        numbers = iter(range(first, last))

        async def some() -> None:
            for number in numbers:
                await self.one(self.way(number))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(some())

    def way(self, number: int) -> str:
        if number % PROCESS_EVERY == PROCESS_EVERY - 1:
            return ("process end", "process Ctrl-C", "process killed")[number // PROCESS_EVERY % 3]
        return self.chance.choice(("end", "end", "cancel", "cut"))

    async def one(self, way: str) -> None:
        try:
            async with asyncio.timeout(CYCLE_S):
                if way.startswith("process"):
                    await self._process(way)
                else:
                    await self._in_process(way)
        except (RbeeError, TimeoutError, AssertionError) as error:
            if way == "cut" and isinstance(error, ConnectError):
                return self.ended.update([f"{way}, each time it tried"])
            self.broken.append(f"{way}: {error!r} {getattr(error, 'details', '')}")
        return self.ended.update([way])

    async def _in_process(self, way: str) -> None:
        begun, lost = asyncio.Event(), asyncio.Event()

        def emit(event: Event) -> None:
            if isinstance(event, Token):
                begun.set()
            if isinstance(event, Notice | Retry):
                lost.set()

        task = asyncio.create_task(infer(self._request(way), replace(self.node.context, emit=emit)))
        if way == "cancel":
            waiting = asyncio.create_task(begun.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            finished = await task
            assert way == "cancel" or finished.usage.completion_tokens == 2
        self.mended += lost.is_set()

    def _request(self, way: str) -> InferRequest:
        return InferRequest(
            messages=(Message("user", "Name the capital of France."),),
            node=self.node.spoilt.name if way == "cut" else self.node.direct.name,
            model=f"file:{self.model}",
            max_tokens=64 if way == "cancel" else 2,
        )

    async def _process(self, way: str) -> None:
        """`rbee infer`, left to end, interrupted or killed at any moment."""
        words = ["-c", BEGIN, "infer", "--node", "direct", "--model", f"file:{self.model}", "--max-tokens", "2"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            "Name the capital of France.",
            env={**os.environ, "RBEE_HOME": str(self.node.home)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        await process.stdout.readline()
        if way != "process end":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.chance.uniform(0.2, 1.0)):
                    await process.wait()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if way == "process killed" else signal.SIGINT)
        status = await process.wait()
        assert status in {"process end": (0,), "process Ctrl-C": (0, 130, -2)}.get(way, (0, -9)), f"status {status}"

    async def quiet_sample(self, cycles: int) -> Sample:
        """What is open once nothing is under way any more, or at the end of patience."""
        deadline = time.monotonic() + SETTLE_S
        while (self.node.sessions() or len(asyncio.all_tasks()) > 1 or self.node.has_work()) and (
            time.monotonic() < deadline
        ):
            gc.collect()
            await asyncio.sleep(0.1)
        keeper, on_node = psutil.Process(), self.node.node_processes()
        return Sample(
            cycles=cycles,
            node_processes=len(on_node),
            node_fds=sum(process.num_fds() for process in on_node),
            node_sockets=sum(map(_sockets, on_node)),
            node_private_mb=round(sum(process.memory_full_info().uss for process in on_node) / 1e6, 1),
            ssh_processes=len(self.node.sessions()),
            keeper_fds=keeper.num_fds(),
            keeper_sockets=_sockets(keeper),
            keeper_tasks=len(asyncio.all_tasks()),
            keeper_private_mb=round(keeper.memory_full_info().uss / 1e6, 1),
            files=sum(map(_stays, (*self.node.home.rglob("*"), *self.node.node_home.rglob("*")))),
        )


def _stays(path: Path) -> bool:
    """Not SQLite's own files beside a database: a keeper that is killed leaves them to the next one."""
    return path.is_file() and not path.name.endswith(("-wal", "-shm"))


def _sockets(process: psutil.Process) -> int:
    return len(process.net_connections(kind="all"))
