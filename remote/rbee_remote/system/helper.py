"""A command of the payload that does one thing, says JSON values, the last of which is its answer, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.child import DEVICE_ORDER, child_environment
from rbee_remote.system.command import payload_command
from rbee_remote.system.identity import own_tag

#: Bytes of a line.
_LINE_LIMIT = 1 << 20
#: Seconds that the end by SIGTERM may take.
_PATIENCE_S = 5.0


async def run_helper(
    *arguments: str,
    request: dict[str, Any] | None = None,
    timeout_s: float | None = None,
    on_line: Callable[[Any], None] = lambda _: None,
    code: ErrorCode = ErrorCode.HELPER_FAILED,
    env: Mapping[str, str] | None = None,
) -> Any:
    """What the command printed last. request: goes to its stdin. timeout_s: None for none. on_line: is told each value
    as it comes. code: of the error where the command ends without saying what went wrong. env: this process's own for
    None; never its secrets. Canceled or late, the process is gone at the end.

    Raises RemoteError: what the command said, or `code`; TimeoutError.
    """
    async with _process(*arguments, env=os.environ if env is None else env) as process:
        try:
            with anyio.fail_after(timeout_s):
                answer = await _converse(process, request, on_line)
                status = await process.wait()
        except TimeoutError as error:
            raise TimeoutError(f"{arguments[0]} took more than {timeout_s:.0f} s") from error
    if status == 0:
        return answer
    if not (isinstance(answer, dict) and "error" in answer):
        raise RemoteError(code, f"{arguments[0]} ended with status {status}", hint="try again")
    raise RemoteError.decode(answer)


async def _converse(
    process: asyncio.subprocess.Process, request: dict[str, Any] | None, on_line: Callable[[Any], None]
) -> Any:
    """The value of the last line; None where it is none."""
    assert process.stdin is not None
    assert process.stdout is not None
    # A process that died before it read its request has said why on its stdout.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if request is not None:
            process.stdin.write(json.dumps(request).encode())
            await process.stdin.drain()
    process.stdin.close()
    answer: Any = None
    async for line in process.stdout:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        on_line(answer)
    return answer


@contextlib.asynccontextmanager
async def _process(*arguments: str, env: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ended, gently first, when the context is left while it runs."""
    process = await asyncio.create_subprocess_exec(
        *payload_command(*arguments, own_tag()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=DEVICE_ORDER | child_environment(env, {}),
        limit=_LINE_LIMIT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with anyio.CancelScope(shield=True):
                process.terminate()
                with anyio.move_on_after(_PATIENCE_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
