"""One child of the hive: started in a session of its own, watched, ended, reaped.

Rules
- A signal goes out only while the child is ours: not reaped, and identified by pid, boot id and start time.
- Signals go to all that belongs to the child, one by one: what it started ends with it, in whatever session that is.
- Ended means that its memory is free as well: RAM is, once a process is reaped; a GPU's driver may take a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from rbee_remote.protocol import SECRET_VARIABLE, ErrorCode, RemoteError
from rbee_remote.system.gpu_users import gpu_pids
from rbee_remote.system.identity import ProcessIdentity, identify, is_same_process
from rbee_remote.system.interface import System, this_system
from rbee_remote.system.process_tree import ProcessTree, grow

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[^\0\ud800-\udfff]*")

#: A status line is a WorkerStatus, whose longest part is an error's text.
_LINE_LIMIT = 1 << 20

_POLL_S = 0.05
#: A driver gives back a GPU's memory within a second or two of the process's end.
_GPU_PATIENCE_S = 5.0


#: CUDA by itself puts the fastest GPU first, the driver and its tools go by the PCI bus: then CUDA0 is the driver's 0.
DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def child_environment(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """`base` without what looks like a secret, plus `extra`, as it was asked for. Raises RemoteError USAGE."""
    for name, value in extra.items():
        if not _VARIABLE.fullmatch(name) or not _VALUE.fullmatch(value):
            raise RemoteError(ErrorCode.USAGE, f"{name!r} cannot be an environment variable")
    return {name: value for name, value in base.items() if not SECRET_VARIABLE.search(name)} | dict(extra)


#: How often OpenMP's threads look for each other before they sleep; llama.cpp has them meet about a thousand times a
#: token. Measured with a model of 135 M on 2 cores, in tokens/s. One worker: 49 with 0, 131 with 300, 148 with 30000,
#: 150 with libgomp's default, which is milliseconds. Two at once: 27 and 26 with the default, and prompts 20 times
#: slower, because each spins in the other's way; 58 and 55 with 300 for both; 45 and 58 with 30000 for the first and
#: 300 for the second. At 8 streams the millisecond of sampling between two steps is longer than 30000 looks: 300000
#: are 3 % faster. For other company than workers of this hive, see `worker.compute.threads`.
SPIN_ALONE, _SPIN_SHARED = "300000", "300"


def spinning(env: Mapping[str, str], *, shared: bool) -> dict[str, str]:
    """`env` for a worker that has the processor's cores to itself, or shares them with another, unless it says how
    long to spin."""
    return {"GOMP_SPINCOUNT": _SPIN_SHARED if shared else SPIN_ALONE} | dict(env)


@functools.cache
def _system() -> System:
    return this_system()


class Child:
    """A running worker process; made by `start`. The event loop reaps it, whether or not somebody waits."""

    def __init__(self, process: asyncio.subprocess.Process, status: asyncio.StreamReader) -> None:
        self._process = process
        self._status = status
        self.identity: ProcessIdentity = identify(process.pid)
        self._tree: ProcessTree = {}

    @classmethod
    async def start(cls, command: Sequence[str], *, config: bytes, env: Mapping[str, str], log: Path) -> Child:
        """Start `command --status-fd N`, with `config` on its stdin and stdout and stderr appended to `log`.

        Raises OSError when it cannot be started.
        """
        reading, writing = os.pipe()
        try:
            with log.open("ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    f"--status-fd={writing}",
                    stdin=subprocess.PIPE,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    start_new_session=True,
                    env=dict(env),
                    cwd="/",
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        status = asyncio.StreamReader(limit=_LINE_LIMIT)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(status), os.fdopen(reading, "rb", buffering=0)
        )
        child = cls(process, status)
        await child._send(config)
        return child

    async def _send(self, config: bytes) -> None:
        assert self._process.stdin is not None
        # A child that died before it read its configuration is seen by `wait`, with its exit status.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(config)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def statuses(self) -> AsyncIterator[bytes]:
        """The lines of the status pipe, until the child has closed it."""
        while line := await self._status.readline():
            yield line

    async def wait(self) -> int:
        """The exit status once the child is reaped; negative is the number of the signal that ended it."""
        return await self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def kill_group(self) -> None:
        """SIGKILL to the child and its group, at once. Does nothing when the child is gone."""
        if self.running and is_same_process(self.identity):
            # Between the check and the signal the child can become a zombie, but only we can reap it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.identity.pid, signal.SIGKILL)

    async def end(self, patience_s: float) -> None:
        """SIGTERM, and where that does not help within `patience_s`, SIGKILL; returns when the child is gone, and all
        that belongs to it, or has been killed `patience_s` ago."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            await anyio.to_thread.run_sync(self._signal_tree, number)
            deadline = time.monotonic() + patience_s
            if await self.gone_within(patience_s):
                await self._tree_gone(deadline)
                if not self._tree:
                    return
        await self.wait()

    def _signal_tree(self, number: signal.Signals) -> None:
        self._look()
        for process in self._tree.values():
            _system().signal(process, number)
            if process.state == "T" and number is signal.SIGTERM:
                _system().signal(process, signal.SIGCONT)  # one that is stopped gets the other only then

    def _look(self) -> None:
        """Bring the tree up to date: whoever of it runs."""
        now = {process.name: process for process in _system().processes()}
        own = (self.identity.pid, self.identity.start_ticks)
        known = {name: now[name] for name in (own, *self._tree) if name in now}
        tree = grow(known, list(now.values()), led={own[0]}, spare=set())
        self._tree = {name: process for name, process in tree.items() if process.runs}

    async def _tree_gone(self, deadline: float) -> None:
        await anyio.to_thread.run_sync(self._look)
        while self._tree and time.monotonic() < deadline:
            await anyio.sleep(_POLL_S)
            await anyio.to_thread.run_sync(self._look)

    async def freed(self) -> bool:
        """Whether no GPU lists the child any more, which is gone; waits for that some seconds."""
        deadline = time.monotonic() + _GPU_PATIENCE_S
        while self.identity.pid in await anyio.to_thread.run_sync(gpu_pids):
            if time.monotonic() >= deadline:
                return False
            await anyio.sleep(_POLL_S)
        return True

    async def gone_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self.wait()
        return not self.running


def describe_exit(status: int) -> dict[str, str | int]:
    """An exit status as details of an error: the signal's name, or the number."""
    if status >= 0:
        return {"exit_status": status}
    try:
        return {"signal": signal.Signals(-status).name}
    except ValueError:
        return {"signal": -status}
