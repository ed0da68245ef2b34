"""`download --target FILE`: a model from the first of its sources that has it, as a process of its own.

stdin: a DownloadRequest. stdout: DownloadProgress lines, then {"path", "resolved", "size", "sha256", "parts"}, or a
RemoteError.
Of a split model the files are FILE's name with the parts' numbers in it, and path is the first one's.
With `--ask` instead of a target: what the source stands for now, as NewestModel, and nothing is fetched.
Runs on a node as a child of the hive, and at the keeper for a node without a way out. SIGTERM ends it,
and so does the end of whoever reads its stdout; the part stays.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from rbee_remote.hive.models import hub
from rbee_remote.hive.models.asked import newest, read_request, redacted, with_token_if_need_be
from rbee_remote.hive.models.early_look import EarlyLook
from rbee_remote.hive.models.fetch import disk_full
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Fetched, PartFile, Problem, Retryable, Wanted, open_part
from rbee_remote.hive.models.part_set import PartSet
from rbee_remote.hive.models.part_urls import parts_of_url, promised
from rbee_remote.hive.models.redirects import Guard
from rbee_remote.protocol import (
    DENIED,
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    RemoteError,
    Source,
    encode,
)
from rbee_remote.protocol.retries import (
    DOWNLOAD_CONNECT_S,
    DOWNLOAD_FIRST_DELAY_S,
    DOWNLOAD_LONGEST_DELAY_S,
    DOWNLOAD_SPREAD,
    DOWNLOAD_STALL_S,
    DOWNLOAD_TRIES,
    DOWNLOAD_TRIES_WHEN_CORRUPT,
    DOWNLOAD_TRIES_WITHOUT_NETWORK,
)
from rbee_remote.protocol.splits import numbered
from rbee_remote.sandbox import harden, limits
from rbee_remote.system.audit import is_full
from rbee_remote.system.command import accept_tags
from rbee_remote.system.hashing import sha256_of
from rbee_remote.system.reader import end_with_reader
from rbee_remote.system.sanitize import redact

PROGRESS_INTERVAL_S = 0.2
#: Bytes of address space, for what no bound elsewhere has thought of. A download has 180 MB of them mapped, of which it
#: uses 40; the longest answer of the hub adds up to 400 MB, and some systems map 200 MB of languages.
MOST_MEMORY = 2**30

#: After these no other source is tried.
_FINAL = (ErrorCode.DISK_FULL, ErrorCode.REQUEST_CANCELED, ErrorCode.USAGE)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. first_delay: before the second try, doubled each time. stall: without a byte until a try is given up."""

    first_delay: float
    stall: float


def main(argv: list[str]) -> int:
    """Raises RemoteError: MODEL_NOT_FOUND, DOWNLOAD_FAILED, DISK_FULL, USAGE, REQUEST_CANCELED."""
    parser = argparse.ArgumentParser(prog="rbee_remote download")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", type=Path, help="the file to make; its part lies beside it")
    what.add_argument("--ask", action="store_true", help="say what the source stands for now, and fetch nothing")
    parser.add_argument(
        "--first-delay", type=float, default=DOWNLOAD_FIRST_DELAY_S, help="seconds before the second try"
    )
    parser.add_argument("--stall", type=float, default=DOWNLOAD_STALL_S, help="seconds without a byte until a try ends")
    accept_tags(parser)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _on_sigterm)
    harden()
    if sys.platform.startswith("linux"):  # what macOS counts is another thing
        limits.lower(resource.RLIMIT_AS, MOST_MEMORY)
    end_with_reader()
    request = read_request()
    try:
        if options.ask:
            _write_line(encode(newest(request)))
        else:
            _write_line(_fetched(request, options.target, Patience(options.first_delay, options.stall)))
    except RemoteError as error:
        raise redacted(error) from error
    except BrokenPipeError:
        # Nobody reads our progress any more. The part stays for the one who asks next.
        sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 - for the flush at exit
        return 1
    except MemoryError as error:
        hint = "check the source: its server sends far more than a download needs"
        raise RemoteError(
            ErrorCode.DOWNLOAD_FAILED, "the download needs more memory than any download should", hint=hint
        ) from error
    return 0


def _fetched(request: DownloadRequest, target: Path, patience: Patience) -> dict[str, Any]:
    """The result's line. Raises RemoteError."""
    try:
        resolved, fetched = _Download(request, target, patience).run()
    except BrokenPipeError:
        raise
    except OSError as error:
        if is_full(error):
            raise disk_full(target) from error
        message = f"the model cannot be written: {error.strerror or error}"
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, message, details={"target": str(target)}) from error
    path = target.with_name(numbered(target.name, 1, len(fetched.parts)))
    return {"path": str(path), "resolved": encode(resolved)} | dataclasses.asdict(fetched)


def _on_sigterm(_: int, __: FrameType | None) -> None:
    raise RemoteError(ErrorCode.REQUEST_CANCELED, "the download was ended; the next one goes on from there")


class _Reporter:
    """Writes progress lines: at once when a try begins, then a few times a second. look: called with the bytes that are
    there, each time that some have come."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self._look = look
        self.attempt = 1
        self.reason = ""
        self.chosen = ""
        self._written_at = 0.0

    def begin(self, attempt: int, reason: str) -> None:
        self.attempt, self.reason, self._written_at = attempt, redact(reason), 0.0

    def __call__(self, done: int, total: int | None) -> None:
        self._look(done)
        now = time.monotonic()
        if done == total or now - self._written_at >= PROGRESS_INTERVAL_S:
            self._written_at = now
            _write_line(encode(DownloadProgress(done, total, self.attempt, self.reason, self.chosen)))


class _Download:
    """One request. Tries are counted per source."""

    def __init__(self, request: DownloadRequest, target: Path, patience: Patience) -> None:
        self._request = request
        self._target = target
        self._patience = patience
        self._report = _Reporter(EarlyLook(request, target))

    def run(self) -> tuple[Source, Fetched]:
        """The source that had the model, pinned, and what came. Raises RemoteError, OSError."""
        with open_part(self._target) as part, PartSet(self._target, part) as parts, self._client() as client:
            found = self._already_there(part)
            if found is not None:
                return self._request.sources[0], found
            failures = []
            for source in self._request.sources:
                if source.kind not in ("hf", "https"):
                    continue
                try:
                    fetch = functools.partial(self._from_source, client, source, parts)
                    return with_token_if_need_be(self._request, source, fetch)
                except RemoteError as error:
                    if error.code in _FINAL:
                        raise
                    failures.append(error)
        raise _worst(failures, self._request)

    def _already_there(self, part: PartFile) -> Fetched | None:
        """The target, if the process we waited for or one before it has brought what is asked for."""
        sha256 = self._request.sha256
        if not sha256 or not self._target.is_file() or sha256_of(self._target) != sha256:
            return None
        part.path.unlink()
        return Fetched(self._target.stat().st_size, sha256, (sha256,))

    def _from_source(self, client: httpx.Client, source: Source, parts: PartSet, token: str) -> tuple[Source, Fetched]:
        """Up to `DOWNLOAD_TRIES` tries with growing delays, and as many again after each part of a split model that has
        come whole. Raises RemoteError when they are used up, OSError."""
        reason, attempt, whole, counts = "", 0, 0, dict.fromkeys(Problem, 0)
        limits = dict.fromkeys(Problem, DOWNLOAD_TRIES) | {Problem.CORRUPT: DOWNLOAD_TRIES_WHEN_CORRUPT}
        while True:
            attempt += 1
            self._report.begin(attempt, reason)
            try:
                resolved, wanted = self._resolve(client, source, token)
                return resolved, parts.fetch(client, wanted, self._report, self._request.sha256)
            except Retryable as error:
                if parts.whole > whole:
                    attempt, whole, counts = 1, parts.whole, dict.fromkeys(Problem, 0)
                reason, problem = error.reason, error.problem
                counts[problem] += 1
                never_connected = counts[Problem.NO_NETWORK] == attempt and not whole
                limit = DOWNLOAD_TRIES_WITHOUT_NETWORK if never_connected else limits[problem]
                if counts[problem] >= limit or attempt == DOWNLOAD_TRIES:
                    raise self._given_up(source, error, attempt, network=not never_connected) from error
                self._wait(attempt, error.retry_after)

    def _resolve(self, client: httpx.Client, source: Source, token: str) -> tuple[Source, tuple[Wanted, ...]]:
        """Where the files of a source are, with what is known of them; what the request says of one file goes before
        what the hub says."""
        request = self._request
        if source.kind == "https":
            urls = parts_of_url(_check_url(source.url))
            if len(urls) > 1:
                return replace(source, url=urls[0]), promised(client, urls)
            return source, (Wanted(source.url, request.sha256, request.size),)
        found = hub.resolve(source, token=token, endpoint=request.endpoint, room=request.room)
        self._report.chosen = f"{found.source.file}: {found.why}" if found.why else ""
        wanted = tuple(Wanted(file.url, file.sha256, file.size, token=token) for file in found.files)
        if request.sha256 and len(wanted) == 1:
            wanted = (replace(wanted[0], sha256=request.sha256, size=request.size),)
        return found.source, wanted

    def _wait(self, attempt: int, retry_after: float) -> None:
        """0.5 s, 1 s, 2 s, … with up to a quarter more, so that many nodes do not come back together."""
        delay = self._patience.first_delay * 2.0 ** (attempt - 1) * random.uniform(1.0, DOWNLOAD_SPREAD)  # noqa: S311 - no secret
        time.sleep(min(max(delay, retry_after), DOWNLOAD_LONGEST_DELAY_S))

    def _client(self) -> contextlib.AbstractContextManager[httpx.Client]:
        timeout = httpx.Timeout(self._patience.stall, connect=DOWNLOAD_CONNECT_S)
        client = httpx.Client(timeout=timeout, follow_redirects=True, headers={"User-Agent": "rbee"})
        Guard(client)
        return client

    def _given_up(self, source: Source, error: Retryable, tries: int, *, network: bool) -> RemoteError:
        details: dict[str, Any] = {"tries": tries, "reason": error.reason, "network": network}
        if not network:
            message, hint = f"{_where(source)} cannot be reached from here", "check the network, or the proxy variables"
        elif error.problem is Problem.CORRUPT:
            message = f"{_where(source)} sends a file with a wrong checksum or size"
            hint = "the file there has changed or is damaged; check where it comes from"
        else:
            message, hint = (
                f"downloading from {_where(source)} broke {tries} times",
                "try again: it goes on where it broke",
            )
        return RemoteError(ErrorCode.DOWNLOAD_FAILED, f"{message}: {error.reason}", hint=hint, details=details)


def _worst(failures: list[RemoteError], request: DownloadRequest) -> RemoteError:
    """Of several sources' failures the last one that another try or a network could mend, else the last one."""
    if not failures:
        kinds = ", ".join(source.kind for source in request.sources) or "none"
        return RemoteError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{request.model} has no source that can be downloaded directly (it has: {kinds})",
            hint="the keeper has to fetch it",
            details={"network": False},
        )
    mendable = [error for error in failures if error.code is not ErrorCode.MODEL_NOT_FOUND or error.details.get(DENIED)]
    return (mendable or failures)[-1]


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        fetched = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        fetched = False
    if not fetched:
        raise RemoteError(ErrorCode.USAGE, f"{url} is not fetched: only https is", hint="use an https:// address")
    return url


def _where(source: Source) -> str:
    return source.repo if source.kind == "hf" else source.url


def _write_line(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()
