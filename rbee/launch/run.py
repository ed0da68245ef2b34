"""`rbee launch`: a program with a gateway of its own, from the model that is loaded for it to its exit status.

Rules
- The terminal is the program's: while it runs nothing is printed, and Ctrl-C is its own.
- It gets its key by its environment, and nothing is written into its configuration. What it reads as a file lies in a
  folder that is gone when it is.
- SIGTERM and SIGHUP end both. Whatever stops the program stops rbee too, which the shell waits for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rbee import audit
from rbee.base.errors import UsageError
from rbee.context import Context
from rbee.infer.request import InferRequest
from rbee.inventory.aliases import ModelAlias
from rbee.launch.gateway import gateway_for, new_key
from rbee.launch.model import Loaded, load
from rbee.launch.programs import PROGRAMS, Offer, Program, Told, environment

#: Seconds that a program has for its end, once it is told.
_FAREWELL_S = 5.0
#: Ctrl-C and Ctrl-\\ go to all of the terminal's foreground; they mean the program.
_ITS_OWN = (signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Launch:
    """What was asked for. arguments: for the program. nodes: which to use, as `Inventory.select` has it."""

    program: Program
    executable: str
    arguments: tuple[str, ...]
    asked: InferRequest
    alias: ModelAlias | None
    nodes: str | None


def find(name: str) -> tuple[Program, str]:
    """A program, and where it lies. Raises UsageError for one that is not known, or not installed."""
    program = PROGRAMS.get(name)
    if program is None:
        raise UsageError(
            f"{name} is none of the programs that can be launched: {', '.join(PROGRAMS)}",
            hint="for others: `rbee serve`, and OPENAI_BASE_URL=http://127.0.0.1:11435/v1",
        )
    executable = shutil.which(program.name)
    if executable is None:
        raise UsageError(f"there is no program {program.name} in PATH", hint=f"to install it: {program.install}")
    return program, executable


async def launch(context: Context, asked: Launch) -> int:
    """The program's exit status, 128 and the signal's number where one ended it. Raises as `load` and `gateway_for`."""
    loaded = await load(context, asked.asked, asked.alias)
    name = asked.program.name
    audited = audit.recorded(context.settings, "launch", emit=context.emit)
    with audited as details:
        details |= {"program": name, "model": loaded.alias.model}
        async with offered(context, asked, loaded) as offer:
            told = asked.program.told(offer)
            _write(told, offer.folder)
            words = (asked.executable, *told.arguments, *asked.arguments)
            status = await run_program(words, environment(told, os.environ))
        details["status"] = status
    return status


def _write(told: Told, folder: str) -> None:
    for name, content in told.files.items():
        Path(folder, name).write_text(content, encoding="utf-8")


@asynccontextmanager
async def offered(context: Context, asked: Launch, loaded: Loaded) -> AsyncIterator[Offer]:
    """What the program is offered, for as long as the gateway serves."""
    key = new_key()
    with tempfile.TemporaryDirectory(prefix="rbee-launch-") as folder:
        aliases = {loaded.name: loaded.alias}
        async with gateway_for(context, asked.program.name, key, asked.nodes, aliases) as url:
            yield Offer(url, key, loaded.name, loaded.ctx, folder)


async def run_program(words: Sequence[str], env: Mapping[str, str]) -> int:
    """Its exit status, 128 and the signal's number where one ended it. Raises UsageError where it cannot be started."""
    with _signals_left_to_it():
        try:
            process = await asyncio.create_subprocess_exec(*words, env=env)
        except OSError as error:
            raise UsageError(
                f"cannot start {words[0]}: {error.strerror}", hint="check that it runs by itself"
            ) from error
        with _stopping_with_it(process.pid):
            try:
                status = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
    return status if status >= 0 else 128 - status


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await process.wait()
                return


@contextmanager
def _signals_left_to_it() -> Iterator[None]:
    """Caught and dropped, not ignored: what is ignored stays so in the program."""
    before = {number: signal.signal(number, lambda *_: None) for number in _ITS_OWN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stopping_with_it(pid: int) -> Iterator[None]:
    """Programs that read Ctrl-Z as a key stop themselves alone. Where no shell could go on with rbee, the kernel drops
    the signal."""

    def on_change() -> None:
        with suppress(ChildProcessError):  # it has ended
            if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG):
                os.kill(os.getpid(), signal.SIGTSTP)

    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, on_change)
    on_change()  # it may have been quick
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
