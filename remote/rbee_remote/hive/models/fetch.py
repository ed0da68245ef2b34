"""One file over HTTP: resumed where it broke, never glued from two versions, renamed into place when whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import PartFile, Problem, Retryable, Wanted
from rbee_remote.protocol import DENIED, ErrorCode, RemoteError

#: Bytes that a file of unknown size leaves free on the disk, and after how many of its bytes that is looked at.
KEPT_FREE = 2**30
LOOKED_AT_EVERY = 64 * 2**20

#: Called with the bytes that are there, and the total where it is known.
OnBytes = Callable[[int, "int | None"], None]


def fetch(client: httpx.Client, wanted: Wanted, part: PartFile, on_bytes: OnBytes) -> None:
    """One try, after which the part is whole and right, and still to be finished.

    Raises Retryable, and RemoteError where another try would not help; OSError when the disk refuses.
    """
    part.prepare(wanted)
    headers = {}
    if wanted.token:
        # httpx drops this header when a redirect leads to another host.
        headers["Authorization"] = f"Bearer {wanted.token}"
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if _is_strong(part.etag):
            headers["If-Range"] = part.etag
    try:
        with client.stream("GET", wanted.url, headers=headers) as response:
            total = _begin(response, wanted, part)
            _check_room(part, total)
            on_bytes(part.size, total)
            if response.status_code != 416:
                _append_all(response, wanted, part, total, on_bytes)
    except httpx.TransportError as error:
        raise interrupted(error) from error
    except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, f"{wanted.url} cannot be followed: {error}") from error
    part.check(wanted, total)


def _append_all(response: httpx.Response, wanted: Wanted, part: PartFile, total: int | None, on_bytes: OnBytes) -> None:
    """What comes, up to one piece more than the file has; of unknown size, as much as the disk has room for.

    Raises RemoteError DISK_FULL; the part, which may be anything, does not stay then.
    """
    look_at, most = part.size, total if wanted.size is None else wanted.size
    for chunk in response.iter_raw():  # as they come: a size would hold back bytes that a break then loses
        if most is None and part.size >= look_at:
            look_at = part.size + LOOKED_AT_EVERY
            if shutil.disk_usage(part.target.parent).free < KEPT_FREE + LOOKED_AT_EVERY:
                error = disk_full(part.target, needed=KEPT_FREE + LOOKED_AT_EVERY)
                part.discard()
                raise error
        part.append(chunk)
        on_bytes(part.size, total)
        if most is not None and part.size > most:
            return  # `PartFile.check` says what is wrong


def _begin(response: httpx.Response, wanted: Wanted, part: PartFile) -> int | None:
    """Match the answer with the part; the total in bytes, where the server says it."""
    status = response.status_code
    etag = response.headers.get("ETag", "")
    if status == 206:
        start, total = _content_range(response)
        if start == part.size:
            return total
        part.restart(wanted, etag="")
        raise Retryable(Problem.BROKEN, f"the server sent bytes from {start} instead of the rest")
    if status == 416:
        _, total = _content_range(response)
        if total == part.size:
            return total
        part.restart(wanted, etag="")
        raise Retryable(Problem.BROKEN, "the file is shorter than the part that is here")
    if status != 200:
        raise _refusal(response, wanted)
    part.restart(wanted, etag=etag if _is_strong(etag) else "")
    total = content_length(response)
    return wanted.size if total is None else total


def _refusal(response: httpx.Response, wanted: Wanted) -> Exception:
    """What a status that brings no content means: worth another try, or not."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        return Retryable(Problem.BROKEN, f"HTTP {status}", retry_after=float(_number(after) or 0))
    if status in (404, 410):
        return RemoteError(ErrorCode.MODEL_NOT_FOUND, f"{wanted.url}: HTTP {status}", hint="check the model's address")
    if status not in (401, 403):
        return RemoteError(ErrorCode.DOWNLOAD_FAILED, f"{wanted.url}: HTTP {status}")
    gated = response.headers.get("X-Error-Code") == "GatedRepo"
    of_whom = ", of somebody who accepted its licence on its page" if gated else ""
    return RemoteError(
        ErrorCode.DOWNLOAD_FAILED,
        f"{wanted.url}: HTTP {status}",
        hint=f"it needs a token that may read it{of_whom}",
        details={DENIED: True},
    )


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` -> (5, 10); `bytes */10` -> (None, 10); a number that is not there is None."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return _number(start), _number(total)


def content_length(response: httpx.Response) -> int | None:
    return _number(response.headers.get("Content-Length", ""))


def _number(text: str) -> int | None:
    """None for what is none, or one that no file has."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _check_room(part: PartFile, total: int | None) -> None:
    if total is not None:
        check_room(part.target, total - part.size)


def check_room(target: Path, needed: int) -> None:
    """Raises RemoteError DISK_FULL before the disk is. needed: bytes."""
    if needed > shutil.disk_usage(target.parent).free:
        raise disk_full(target, needed=needed)


def disk_full(target: Path, *, needed: int | None = None) -> RemoteError:
    free = shutil.disk_usage(target.parent).free
    details: dict[str, int | str] = {"available_mb": free // 10**6, "folder": str(target.parent)}
    if needed is not None:
        details["needed_mb"] = -(-needed // 10**6)
    return RemoteError(
        ErrorCode.DISK_FULL,
        f"there is no room for the model in {target.parent}",
        hint="remove models (rbee models rm), or set home to a larger disk",
        details=details,
    )


def _is_strong(etag: str) -> bool:
    return bool(etag) and not etag.startswith("W/")


def interrupted(error: httpx.TransportError) -> Retryable:
    """What an error of the transport means for the next try."""
    no_network = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
    return Retryable(Problem.NO_NETWORK if no_network else Problem.BROKEN, str(error) or type(error).__name__)
