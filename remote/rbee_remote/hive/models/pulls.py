"""Downloads that the hive runs for its clients: one process per model, shared by all who ask for it at once.

A download whose last client has gone is ended; the part stays, and the next pull goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from rbee_remote.hive.models import registration
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.protocol import (
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    ModelInfo,
    ProtocolError,
    RegisterRequest,
    RemoteError,
    decode,
    encode,
)
from rbee_remote.system.child import child_environment
from rbee_remote.system.command import payload_command
from rbee_remote.system.helper import parse_last_line
from rbee_remote.system.identity import own_mark

_log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_LINE_LIMIT = 1 << 20


class _Pull:
    """One download and those who watch it. outcome: None while it runs."""

    def __init__(self) -> None:
        self.progress = DownloadProgress(done=0, total=None)
        self.outcome: ModelInfo | RemoteError | None = None
        self.watchers = 0
        self.changed = anyio.Event()
        self.scope = anyio.CancelScope()

    def touch(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class Pulls:
    def __init__(self, catalog: Catalog, tasks: TaskGroup) -> None:
        self._catalog = catalog
        self._tasks = tasks
        #: By model and token: who has one is not given what the hub says to somebody without.
        self._shared: dict[tuple[str, str], _Pull] = {}
        self._running: set[_Pull] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def cancel_all(self) -> None:
        for pull in self._running:
            pull.scope.cancel()

    async def pull(self, request: DownloadRequest) -> AsyncGenerator[DownloadProgress | ModelInfo, None]:
        """Progress as it comes, the catalogued model at the end. Raises RemoteError as `download` and `register` do."""
        key = (request.model, request.token)
        pull = self._shared.get(key)
        if pull is None:
            pull = self._shared[key] = _Pull()
            self._running.add(pull)
            self._tasks.start_soon(self._run, pull, request)
        pull.watchers += 1
        try:
            seen: DownloadProgress | None = None
            while pull.outcome is None:
                changed = pull.changed
                if pull.progress is not seen:
                    seen = pull.progress
                    yield seen
                    continue
                await changed.wait()
            if isinstance(pull.outcome, RemoteError):
                raise pull.outcome
            yield pull.outcome
        finally:
            pull.watchers -= 1
            if pull.watchers == 0:
                # Whoever comes now starts another process, which waits until this one has let go of the part.
                self._unshare(request, pull)
                pull.scope.cancel()

    def _unshare(self, request: DownloadRequest, pull: _Pull) -> None:
        key = (request.model, request.token)
        if self._shared.get(key) is pull:
            del self._shared[key]

    async def _run(self, pull: _Pull, request: DownloadRequest) -> None:
        try:
            with pull.scope:
                pull.outcome = await self._download_and_register(pull, request)
        except RemoteError as error:
            _log.warning("pulling %s failed: %s %s", request.model, error.message, error.details)
            pull.outcome = error
        except Exception as error:
            _log.exception("pulling %s failed", request.model)
            pull.outcome = RemoteError(ErrorCode.INTERNAL, f"the download could not be run: {error}")
        finally:
            if pull.outcome is None:
                pull.outcome = RemoteError(ErrorCode.REQUEST_CANCELED, f"the download of {request.model} was ended")
            self._unshare(request, pull)
            self._running.discard(pull)
            pull.touch()

    async def _download_and_register(self, pull: _Pull, request: DownloadRequest) -> ModelInfo:
        blob = self._catalog.blob(request.sha256) if request.sha256 else self._catalog.incoming(request.model)
        async with _download_process(blob) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            # A process that died before it read its request has said why on its stdout.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(json.dumps(encode(request)).encode())
                await process.stdin.drain()
            process.stdin.close()
            answer: Any = None
            async for line in process.stdout:
                answer = parse_last_line(line)
                with contextlib.suppress(ProtocolError):  # the last line is no progress, but the result
                    pull.progress = decode(DownloadProgress, answer)
                    pull.touch()
            status = await process.wait()
        if status != 0:
            raise RemoteError.decode(answer)
        source = registration.describe_source(answer["resolved"])
        register = RegisterRequest(request.model, answer["path"], answer["sha256"], source)
        return await registration.admit(
            self._catalog, register, Path(answer["path"]), sha256=answer["sha256"], owned=True
        )


@contextlib.asynccontextmanager
async def _download_process(target: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The `download` process; ended, gently first, when the context is left while it runs."""
    process = await asyncio.create_subprocess_exec(
        *payload_command("download", "--target", str(target), own_mark()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(os.environ, {}),
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
