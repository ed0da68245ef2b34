"""Downloads that the hive runs for its clients: one process per model, shared by all who ask for it at once.

A download whose last client has gone is ended; the part stays, and the next pull goes on from there. So does who asked
for the same model to use it otherwise, where it is given up for what it cannot do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
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
    NewestModel,
    ProtocolError,
    RegisterRequest,
    RemoteError,
    Source,
    decode,
    encode,
)
from rbee_remote.protocol.abilities import refusal
from rbee_remote.system.changes import Changes
from rbee_remote.system.helper import run_helper

_log = logging.getLogger(__name__)


class _Pull:
    """One download and those who watch it. outcome: None while it runs."""

    def __init__(self) -> None:
        self.progress = DownloadProgress(done=0, total=None)
        self.outcome: ModelInfo | RemoteError | None = None
        self.watchers = 0
        self.changed = Changes()
        self.scope = anyio.CancelScope()


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

    async def newest(self, request: DownloadRequest) -> NewestModel:
        """What a hub source stands for now. Raises RemoteError MODEL_NOT_FOUND, DOWNLOAD_FAILED, USAGE."""
        if [source.kind for source in request.sources] != ["hf"]:
            raise RemoteError(ErrorCode.USAGE, f"{request.model} is not of a hub, which could have a newer one")
        answer = await run_helper("download", "--ask", request=encode(request), code=ErrorCode.DOWNLOAD_FAILED)
        return decode(NewestModel, answer)

    async def pull(self, request: DownloadRequest) -> AsyncGenerator[DownloadProgress | ModelInfo, None]:
        """Progress as it comes, the catalogued model at the end. Raises RemoteError as `download` and `register` do."""
        while True:
            try:
                async with contextlib.aclosing(self._watched(request)) as items:
                    async for item in items:
                        yield item
                return
            except RemoteError as error:  # noqa: PERF203 - each time is a download
                if not _is_about_another(error, request):
                    raise

    async def _watched(self, request: DownloadRequest) -> AsyncGenerator[DownloadProgress | ModelInfo, None]:
        """One download, which may have been begun for somebody else."""
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
                if pull.progress is not seen:
                    seen = pull.progress
                    yield seen
                    continue
                await pull.changed.wait()
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
            pull.changed.notify()

    async def _download_and_register(self, pull: _Pull, request: DownloadRequest) -> ModelInfo:
        blob = self._catalog.blob(request.sha256) if request.sha256 else self._catalog.incoming(request.model)

        def take(line: Any) -> None:
            with contextlib.suppress(ProtocolError):  # the last line is no progress, but the result
                pull.progress = decode(DownloadProgress, line)
                pull.changed.notify()

        words, code = ("download", "--target", str(blob)), ErrorCode.DOWNLOAD_FAILED
        answer = await run_helper(*words, request=encode(request), on_line=take, code=code)
        source = decode(Source, answer["resolved"]).describe()
        register = RegisterRequest(request.model, answer["path"], answer["sha256"], source)
        return await registration.admit(
            self._catalog, register, Path(answer["path"]), sha256=answer["sha256"], owned=True
        )


def _is_about_another(error: RemoteError, request: DownloadRequest) -> bool:
    """Whether a model was given up since it cannot do what somebody else wants it for, and does what this one does."""
    able = error.details.get("able")
    if not isinstance(able, list):
        return False
    return not request.ability or not refusal(request.model, tuple(map(str, able)), request.ability)
