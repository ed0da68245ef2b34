"""What a `download` process is asked for, there or here, and how its progress is told."""

from __future__ import annotations

import os
from collections.abc import Callable

from rbee.base.errors import ConfigError
from rbee.base.events import Emit, Notice, Progress, Retry
from rbee.models.hub_token import hub_token
from rbee.models.ref import ModelRef
from rbee_remote.protocol import DownloadProgress, DownloadRequest
from rbee_remote.protocol.retries import DOWNLOAD_TRIES
from rbee_remote.protocol.search import Room, SearchRequest

#: Of the events.
KEY = "model"


def download_request(ref: ModelRef, *, with_token: bool) -> DownloadRequest:
    """For the `download` process, there or here. with_token: where it runs, the user's hub token may be.

    Raises ConfigError for a hub token that others can read, and for HF_ENDPOINT with a password in it.
    """
    uses_hub = any(source.kind == "hf" for source in ref.sources)
    return DownloadRequest(
        model=ref.canonical,
        sources=ref.sources,
        sha256=ref.sha256,
        size=ref.size,
        token=hub_token() if uses_hub and with_token else "",
        endpoint=_endpoint() if uses_hub else "",
    )


def search_request(words: str, limit: int, rooms: tuple[Room, ...], ctx: int) -> SearchRequest:
    """For the `search` process here. Raises as `download_request` does."""
    return SearchRequest(words, limit, rooms, ctx=ctx, token=hub_token(), endpoint=_endpoint())


def _endpoint() -> str:
    """$HF_ENDPOINT, which shows up in errors and logs. Raises ConfigError."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if "@" in endpoint:
        raise ConfigError(
            "HF_ENDPOINT has a user or a password in it, which would end up in logs",
            hint="set it to the address alone; HF_TOKEN is the place for a token",
        )
    return endpoint


def download_reporter(text: str, emit: Emit) -> Callable[[DownloadProgress], None]:
    """Turns a download's progress into events: bytes, each try that failed, and which file was chosen."""
    tries, chosen = 1, ""

    def report(progress: DownloadProgress) -> None:
        nonlocal tries, chosen
        if progress.chosen and progress.chosen != chosen:
            chosen = progress.chosen
            emit(Notice(f"taking {chosen}"))
        if progress.attempt != tries:  # fewer where a part of a split model has come whole since
            if progress.attempt > 1:
                emit(Retry(text, progress.attempt - 1, DOWNLOAD_TRIES, progress.reason, 0.0))
            tries = progress.attempt
        total = None if progress.total is None else float(progress.total)
        emit(Progress(KEY, text, float(progress.done), total))

    return report
