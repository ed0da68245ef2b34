"""A command of the payload that does one thing, says one JSON value, and ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import Any

import anyio

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.child import DEVICE_ORDER, child_environment
from rbee_remote.system.command import payload_command
from rbee_remote.system.identity import own_mark


async def run_helper(*arguments: str, request: dict[str, Any] | None = None, timeout_s: float) -> Any:
    """What the command printed last. request: goes to its stdin. Canceled or late, the process is gone at the end.

    Raises RemoteError: what the command said, WORKER_CRASHED where it said nothing, LOADING_TIMEOUT.
    """
    process = await asyncio.create_subprocess_exec(
        *payload_command(*arguments, own_mark()),
        stdin=subprocess.DEVNULL if request is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=DEVICE_ORDER | child_environment(os.environ, {}),
    )
    try:
        with anyio.fail_after(timeout_s):
            output, _ = await process.communicate(None if request is None else json.dumps(request).encode())
    except TimeoutError as error:
        raise RemoteError(ErrorCode.LOADING_TIMEOUT, f"{arguments[0]} took more than {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
    answer = parse_last_line(output)
    if process.returncode == 0:
        return answer
    if answer is None:
        raise RemoteError(ErrorCode.WORKER_CRASHED, f"{arguments[0]} ended with status {process.returncode}")
    raise RemoteError.decode(answer)


def parse_last_line(output: bytes) -> Any:
    """The JSON value of the last line of a command's stdout; None where it is none."""
    lines = output.splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
