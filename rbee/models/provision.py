"""Phase 3: brings a model onto a node. The node downloads it itself where it can; else it comes from here.

Rules
- The hive's catalog says what a node has; it registers a file only when it is whole and its SHA-256 is right.
- What was fetched here stays in the keeper's cache under its SHA-256, for the next node.
- One at a time for each node and model: whoever waited finds the model in the catalog.
- While a node's first runtime is made, what this machine would send is fetched and put there (`Ahead`). Another node
  downloads for itself, once its hive runs: what it can have from the hub does not travel through here.
- The user's hub token goes to this machine's own processes, and to a node whose entry says `hub_token = true`. What
  needs it is fetched here for all others.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Notice, Progress
from rbee.base.files import LocalFile
from rbee.base.locks import keeper_lock
from rbee.inventory import Node
from rbee.models.able import check_able
from rbee.models.downloads import download_reporter, download_request
from rbee.models.elsewhere import use_elsewhere
from rbee.models.ref import ModelRef
from rbee.models.room import with_room
from rbee.models.store import ModelStore, Stored
from rbee.node.hive_client import HiveClient
from rbee.node.session import NodeSession
from rbee.setup.base.payload import build_payload
from rbee_remote.protocol import (
    DENIED,
    DownloadRequest,
    ErrorCode,
    ModelInfo,
    NewestModel,
    RegisterRequest,
)
from rbee_remote.protocol.splits import numbered, parts_of


class Ahead:
    """A model for a node that has no hive yet. placed: what was put there, None for nothing."""

    def __init__(self, session: NodeSession, ref: ModelRef, ability: str = "") -> None:
        self.placed: Stored | None = None
        self._session = session
        self._ref = ref
        self._ability = ability

    async def bring(self, home: str) -> None:
        """Fetch the model and put it below the node's home. Raises as `ensure_model`, which registers it, but for
        DOWNLOAD_FAILED: a runtime that is compiled meanwhile is not lost for that, and `ensure_model` fetches again."""
        session, ref = self._session, self._ref
        if _lies_there(ref) or not (session.node.is_local or _is_sent(ref)):
            return
        try:
            async with _turn(session, ref.canonical):
                stored = await _fetch(session, ref, self._ability)
                await _put(session, home, ref.canonical, stored)
                self.placed = stored
        except NodeError as error:
            if error.code is not ErrorCode.DOWNLOAD_FAILED:
                raise
            session.emit(Notice(f"{error.message}; it is tried again once {session.node.name} is ready"))


async def ensure_model(
    session: NodeSession, ref: ModelRef, *, placed: Stored | None = None, ability: str = ""
) -> ModelInfo:
    """The model in the catalog of a node that is attached, brought there if need be. placed: as of `Ahead`. ability:
    what it is wanted for, one of the words of `abilities`; one that cannot serve it is not downloaded.

    Raises NodeError MODEL_NOT_FOUND, MODEL_INVALID, DOWNLOAD_FAILED or DISK_FULL, ConfigError for a hub token that
    others can read, UsageError where the model cannot serve what it is wanted for, and ConnectError.
    """
    found = await _ensured(session, ref, placed, ability)
    check_able(found.model, found.meta.able, ability)
    return found


async def _ensured(session: NodeSession, ref: ModelRef, placed: Stored | None, ability: str) -> ModelInfo:
    hive = session.attached.hive
    if found := await in_catalog(hive, ref):
        return found
    if path := ref.path_on_node:
        return await hive.register(RegisterRequest(model=ref.canonical, path=path, source=ref.canonical))
    async with _turn(session, ref.canonical):
        if found := await in_catalog(hive, ref):
            return found
        if placed:
            return await _register(session, ref.canonical, placed)
        if found := await use_elsewhere(session, ref):
            return found
        return await _bring(session, ref, ability=ability)


async def refresh_model(session: NodeSession, ref: ModelRef) -> ModelInfo:
    """The model brought to the node again, in place of the copy there, which stays until the other is whole.

    Raises as `ensure_model` does.
    """
    async with _turn(session, ref.canonical):
        return await _bring(session, ref, refresh=True)


async def newest_model(session: NodeSession, ref: ModelRef) -> NewestModel:
    """What a hub ref stands for now, asked from the node, or from here where the node has no way out.

    Raises NodeError MODEL_NOT_FOUND, DOWNLOAD_FAILED.
    """
    request = await with_room(session, request_for(session.node, ref))
    try:
        return await session.attached.hive.newest(request)
    except NodeError as error:
        if not (_why_not_there(session.node, ref, request, error)):
            raise
    store = ModelStore.of(session.context.settings, build_payload())
    return await store.newest(replace(request, token=download_request(ref, with_token=True).token))


async def _bring(session: NodeSession, ref: ModelRef, *, ability: str = "", refresh: bool = False) -> ModelInfo:
    """By the node itself where it can. ability: as in `ensure_model`. refresh: not from this keeper's cache."""
    if _is_sent(ref):
        return await _by_push(session, ref, ability)
    request = await with_room(session, replace(request_for(session.node, ref), ability=ability))
    try:
        return await _by_pull(session, request)
    except NodeError as error:
        why = _why_not_there(session.node, ref, request, error)
        if not why:
            raise
    session.emit(Notice(f"{why}: downloading here and sending it there"))
    return await _by_push(session, ref, ability, refresh=refresh)


def request_for(node: Node, ref: ModelRef) -> DownloadRequest:
    """For the node's own download. Raises ConfigError."""
    return download_request(ref, with_token=node.is_local or node.hub_token)


def _why_not_there(node: Node, ref: ModelRef, request: DownloadRequest, error: NodeError) -> str:
    """Why the node cannot have what this machine could; "" where that would make no difference."""
    if error.code is ErrorCode.DOWNLOAD_FAILED and error.details.get("network") is False:
        return f"{node.name} cannot reach {_host(ref)}"
    if _token_would_help(error, request, ref):
        return f"{node.name} may not have the hub token, which {ref.canonical} needs"
    return ""


async def push_model(session: NodeSession, ref: ModelRef) -> ModelInfo:
    """Fetch a model here, unless the cache has it, and send it, whether or not the node could have downloaded it."""
    if _lies_there(ref):
        raise UsageError(
            f"{ref.canonical} names a file on the node already",
            hint="to send a file of this machine, give its path without file:",
        )
    async with _turn(session, ref.canonical):
        return await _by_push(session, ref)


async def push_file(session: NodeSession, path: Path) -> ModelInfo:
    """Send a file of this machine, or all parts of the split model that it is a part of. Its ref afterwards is `file:`
    and where it, or the first part, lies on the node. Raises UsageError where a part is missing."""
    paths = local_parts(path)
    session.emit(Progress("hash", f"reading {path.name}", 0.0, None, "steps"))
    files = [await asyncio.to_thread(LocalFile.of, part) for part in paths]
    stored = Stored(tuple(files), source=f"file:{paths[0]}")
    async with _turn(session, stored.sha256):
        return await _send(session, f"file:{_blobs(session.attached.probe.home, stored)[0]}", stored)


def local_parts(path: Path) -> list[Path]:
    """The files of a model on this machine, in order. Raises UsageError where a part is missing."""
    paths = [path.absolute().with_name(name) for name in parts_of(path.name)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise UsageError(
            f"{path.name} is one of {len(paths)} parts of a split model, and {missing[0]} is not beside it",
            hint=f"put all parts into {path.parent}, under the names that they came with",
        )
    return paths


async def in_catalog(hive: HiveClient, ref: ModelRef) -> ModelInfo | None:
    """What a node has under this ref."""
    return next((model for model in await hive.models() if model.model == ref.canonical), None)


def _turn(session: NodeSession, what: str) -> AbstractAsyncContextManager[bool]:
    name, node = hashlib.sha256(what.encode()).hexdigest()[:16], session.node.name
    return keeper_lock(session.context.settings, f"model-{node}-{name}", f"brings this model to {node}", session.emit)


def _token_would_help(error: NodeError, request: DownloadRequest, ref: ModelRef) -> bool:
    """Whether the hub refused for want of a token, and there is one here that the node was not given."""
    return bool(error.details.get(DENIED) and not request.token and download_request(ref, with_token=True).token)


async def _by_pull(session: NodeSession, request: DownloadRequest) -> ModelInfo:
    """The node downloads. Raises NodeError DOWNLOAD_FAILED, with details network False where it has no way out, and
    either code with details DENIED where the hub refuses."""
    report = download_reporter(f"downloading {request.model}", session.emit)
    async for item in session.attached.hive.pull(request):
        if isinstance(item, ModelInfo):
            return item
        report(item)
    raise NodeError(ErrorCode.DOWNLOAD_FAILED, f"the hive ended the download of {request.model}", hint="try again")


async def _by_push(session: NodeSession, ref: ModelRef, ability: str = "", *, refresh: bool = False) -> ModelInfo:
    """From the keeper's cache, filled first if need be."""
    return await _send(session, ref.canonical, await _fetch(session, ref, ability, refresh=refresh))


def _lies_there(ref: ModelRef) -> bool:
    """Whether it names what a node has on its disk, and nothing that could be fetched."""
    return ref.sources[0].kind in {"file", "ollama"}


def _is_sent(ref: ModelRef) -> bool:
    """Whether no node can download it for itself."""
    return ref.sources[0].kind == "wheel"


async def _fetch(session: NodeSession, ref: ModelRef, ability: str = "", *, refresh: bool = False) -> Stored:
    store = ModelStore.of(session.context.settings, build_payload())
    report = download_reporter(f"downloading {ref.canonical}", session.emit)
    request = await with_room(session, replace(download_request(ref, with_token=True), ability=ability))
    return await store.fetch(ref, request, report, session.emit, refresh=refresh)


async def _send(session: NodeSession, model: str, stored: Stored) -> ModelInfo:
    """Put a model's files into the node's models folder and have the hive register it."""
    await _put(session, session.attached.probe.home, model, stored)
    return await _register(session, model, stored)


async def _put(session: NodeSession, home: str, model: str, stored: Stored) -> None:
    text, size, sent = f"sending {model} to {session.node.name}", float(stored.size), 0

    def on_bytes(done: int, _: int) -> None:
        session.emit(Progress("send", text, float(sent + done), size))

    for file, target in zip(stored.files, _blobs(home, stored), strict=True):
        if not (session.node.is_local and _link(file.path, Path(target))):
            await session.connection.put(file.path, target, sha256=file.sha256, on_bytes=on_bytes)
        sent += file.size


async def _register(session: NodeSession, model: str, stored: Stored) -> ModelInfo:
    target = _blobs(session.attached.probe.home, stored)[0]
    session.emit(Progress("check", f"checking {model}", 0.0, None, "steps"))
    request = RegisterRequest(model=model, path=target, sha256=stored.sha256, source=stored.source)
    return await session.attached.hive.register(request, stored.size)


def _blobs(home: str, stored: Stored) -> list[str]:
    """Where a model's files lie on a node, in their order."""
    count = len(stored.files)
    return [f"{home}/models/{numbered(f'{stored.sha256}.gguf', number, count)}" for number in range(1, count + 1)]


def _link(source: Path, target: Path) -> bool:
    """Give a file of this machine a second name; False where file systems or their rules do not allow it."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(source.resolve(), target)  # os.link itself would link to a symbolic link on Linux
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _host(ref: ModelRef) -> str:
    return "the hub" if ref.sources[0].kind == "hf" else ref.sources[0].url.split("/")[2]
