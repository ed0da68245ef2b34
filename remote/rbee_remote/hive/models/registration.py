"""Taking models into the catalog: checked by checksum, understood as GGUF, and only then registered."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

import anyio.to_thread

from rbee_remote.hive.models.catalog import Catalog, check_path, check_ref
from rbee_remote.hive.models.elsewhere import found_elsewhere
from rbee_remote.protocol import ErrorCode, ModelInfo, ModelMeta, RegisterRequest, RemoteError, decode
from rbee_remote.protocol.elsewhere import FoundElsewhere
from rbee_remote.protocol.splits import digest_of_parts
from rbee_remote.system.hashing import sha256_of
from rbee_remote.system.helper import run_helper
from rbee_remote.system.model_files import files_of, look, missing_files

_log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Reading the vocabulary of a large model with the gguf library takes some 10 s on a slow core.
_INSPECT_TIMEOUT_S = 120.0


async def register(catalog: Catalog, request: RegisterRequest) -> ModelInfo:
    """Take a file, or the parts of a split model, into the catalog. What is owned is renamed to its checksum.

    Raises RemoteError: USAGE, MODEL_NOT_FOUND, MODEL_INVALID, DOWNLOAD_FAILED when the checksum is another one.
    """
    check_ref(request.model)
    check_sha256(request.sha256)
    owned = catalog.owns(check_path(request.path))
    if not owned and not request.model.startswith("file:") and not await is_elsewhere(request.path):
        raise RemoteError(ErrorCode.USAGE, f"{request.model} has to lie in the models folder of this node")
    named = catalog.locate(request.path) if owned else Path(request.path)
    path = files_of(named)[0]
    _check_all_there(path)
    # Somebody else's file is only read through now when there is something to compare it with; else by `Digests`.
    sha256 = await anyio.to_thread.run_sync(_digest_of, path) if owned or request.sha256 else ""
    if request.sha256 and sha256 != request.sha256:
        raise RemoteError(
            ErrorCode.DOWNLOAD_FAILED,
            f"the checksum of {path.name} is wrong",
            hint="put it there again",
            details={"expected": request.sha256, "found": sha256},
        )
    return await admit(catalog, request, path, sha256=sha256 if owned else "", owned=owned)


async def elsewhere() -> list[FoundElsewhere]:
    """What other programs of this user have."""
    return await anyio.to_thread.run_sync(found_elsewhere, Path.home(), os.environ)


async def is_elsewhere(path: str) -> bool:
    return any(each.path == path for each in await elsewhere())


def _check_all_there(path: Path) -> None:
    """Raises RemoteError MODEL_NOT_FOUND."""
    files, missing = files_of(path), [file.name for file in missing_files(path)]
    if not missing:
        return
    if len(files) == 1:
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"there is no file {path} on this node, or none that may be read")
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise RemoteError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{path.name} is one of {len(files)} parts of a split model, and {missing[0]}{more} is not in {path.parent}",
        hint="put all parts into one folder of this node, under the names that they came with",
    )


def _digest_of(path: Path) -> str:
    return digest_of_parts(sha256_of(file) for file in files_of(path))


async def admit(catalog: Catalog, request: RegisterRequest, path: Path, *, sha256: str, owned: bool) -> ModelInfo:
    """Register a model whose checksum is known to be `sha256`. path: of its file, or of its first part.

    Raises RemoteError MODEL_INVALID; an owned one is gone then.
    """
    try:
        meta = await inspect(path)
    except RemoteError as error:
        if owned and error.code is ErrorCode.MODEL_INVALID:
            catalog.discard(path)
        raise RemoteError(
            error.code, f"{request.model}: {error.message}", hint=error.hint, details=error.details
        ) from error
    if owned:
        path = catalog.take_in(path, sha256)
    info = ModelInfo(
        model=request.model,
        path=str(path),
        size=look(path).size,
        sha256=sha256,
        owned=owned,
        source=request.source,
        added_at=time.time(),
        meta=meta,
        parts=len(files_of(path)),
    )
    catalog.add(info)
    _log.info("registered %s: %s, %d bytes", info.model, path.name, info.size)
    return info


async def inspect(path: Path) -> ModelMeta:
    """What the file says of itself, read in a process of its own. Raises RemoteError MODEL_INVALID."""
    try:
        return decode(ModelMeta, await run_helper("inspect", str(path), timeout_s=_INSPECT_TIMEOUT_S))
    except TimeoutError as error:
        raise RemoteError(ErrorCode.MODEL_INVALID, "the file could not be read in time") from error


def check_sha256(sha256: str) -> None:
    """Raises RemoteError USAGE unless it is empty or the hex of a SHA-256."""
    if sha256 and not _SHA256.fullmatch(sha256):
        raise RemoteError(ErrorCode.USAGE, "sha256 has to be 64 lower-case hex digits")
