"""Child processes whose output is read line by line, and which end with us: each has its own process group.

Rules
- Leaving `lines` early, by an error or by a cancellation (Ctrl-C), ends the whole group before anything else goes on.
- None runs in the user's current folder, where a repository can have left what tools obey: pip asks `rustc` for its
  version, which rustup takes from wherever `rust-toolchain.toml` says. Paths in a command are absolute.
- SIGTERM comes first: ninja puts its compilers into groups of their own, and only ninja can end those.
- One that reads nothing ends even where we are killed and can end nothing: a shell beside it holds the other end of a
  pipe of ours. One that is given something to read is a command of ours, and ends with whoever reads its stdout.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rbee.render.text import neutralise
from rbee_remote.protocol import SECRET_VARIABLE

#: A compiler's command line can be long; asyncio's own limit is 64 KiB.
MAX_LINE = 4 * 1024 * 1024
PATIENCE_S = 5.0

#: The hub token, which no child of ours has a use for: `download` gets it on stdin, where nobody else can read it.
HUB_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})

#: Runs its arguments without a stdin, and ends its process group, which is the child's, when its own stdin ends.
_ENDS_WITH_US = """\
exec 3<&0
( while read -r line; do :; done <&3; kill -s TERM -- -$$ ) >/dev/null 2>&1 &
"$@" </dev/null 3<&-
status=$?; kill $! 2>/dev/null; exit $status
"""

OnLine = Callable[[str], None]


async def run(
    command: Sequence[str | Path],
    on_line: OnLine,
    *,
    env: dict[str, str] | None = None,
    stdin: bytes = b"",
    errors: Path | None = None,
    secrets: bool = True,
) -> int:
    """Run a command, hand each line of its output to `on_line` (without the newline), and return its exit status.

    env: variables on top of our own, of which it gets all but the hub token. errors: the file that stderr goes to;
    without one it is read along with stdout. secrets: it may need what looks like one, as pip does for an index.
    """
    words = command if stdin else ["/bin/sh", "-c", _ENDS_WITH_US, "sh", *command]
    with _log_file(errors) as file:
        process = await asyncio.create_subprocess_exec(
            *map(str, words),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE if file else STDOUT,
            env=_environment(secrets=secrets) | (env or {}),
            cwd="/",
            limit=MAX_LINE,
            start_new_session=True,
        )
        log = asyncio.create_task(_write_log(process, file)) if file else None
        try:
            if stdin:
                await _feed(process, stdin)
            assert process.stdout
            async for line in process.stdout:
                on_line(line.decode(errors="replace").rstrip("\r\n"))
            return await process.wait()
        finally:
            await asyncio.shield(_end_group(process))
            if log:
                await log


def _environment(*, secrets: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in HUB_TOKENS}
    return kept if secrets else {name: value for name, value in kept.items() if not SECRET_VARIABLE.search(name)}


@contextmanager
def _log_file(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield file


async def _write_log(process: Process, file: TextIO) -> None:
    """What the process says on stderr, as it comes. It quotes others, so what a terminal would obey is written out."""
    assert process.stderr
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    while data := await process.stderr.read(2**16):
        file.write(neutralise(decoder.decode(data)))
        file.flush()


async def _feed(process: Process, data: bytes) -> None:
    assert process.stdin
    with suppress(BrokenPipeError, ConnectionResetError):  # it ended early; its exit status and output say why
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _end_group(process: Process) -> None:
    """End whatever is left of the group. Its number is not given to others while a member lives."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    ending = _signal_group(process.pid, signal.SIGTERM)
    while ending and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
        ending = _signal_group(process.pid, 0)
    if ending:
        _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anybody to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
