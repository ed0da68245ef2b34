"""What a `download` process is asked for: read, with what of it may go where, and nothing of it in an error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from rbee_remote.hive.models import hub
from rbee_remote.hive.models.part_file import Retryable
from rbee_remote.protocol import (
    DENIED,
    DownloadRequest,
    ErrorCode,
    NewestModel,
    ProtocolError,
    RemoteError,
    Source,
    decode,
)
from rbee_remote.system.sanitize import redact

T = TypeVar("T")

#: What a header can carry; what cannot be a token must not come near the HTTP library, whose errors would quote it.
_TOKEN = re.compile(r"[!-~]*")


def read_request() -> DownloadRequest:
    """From stdin. Raises RemoteError USAGE."""
    try:
        request = decode(DownloadRequest, json.load(sys.stdin))
    except (ProtocolError, ValueError) as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error
    if not _TOKEN.fullmatch(request.token):
        raise RemoteError(ErrorCode.USAGE, "the hub token has characters that no token has")
    return request


def redacted(error: RemoteError) -> RemoteError:
    """Without the queries of addresses: it is shown and logged."""
    details = {name: redact(value) if isinstance(value, str) else value for name, value in error.details.items()}
    return RemoteError(error.code, redact(error.message), hint=redact(error.hint), details=details)


def with_token_if_need_be(request: DownloadRequest, source: Source, act: Callable[[str], T]) -> T:
    """What `act` makes with "", or where that is refused with the token. What everybody may have is fetched by nobody
    in particular. Raises RemoteError."""
    try:
        return act("")
    except RemoteError as error:
        token, endpoint = request.token, request.endpoint
        if source.kind != "hf" or not token or not error.details.get(DENIED):
            raise
        if endpoint and urlsplit(endpoint).scheme != "https":
            hint = "a hub token is only sent over https: set HF_ENDPOINT to an https:// address"
            raise RemoteError(error.code, error.message, hint=hint, details=error.details) from error
    return act(token)


def newest(request: DownloadRequest) -> NewestModel:
    """What the request's hub ref stands for now; one question, and nothing is fetched.

    Raises RemoteError MODEL_NOT_FOUND, DOWNLOAD_FAILED with details network False where no hub was reached.
    """
    (source,) = request.sources
    try:
        found = with_token_if_need_be(
            request,
            source,
            lambda token: hub.resolve(source, token=token, endpoint=request.endpoint, room=request.room),
        )
    except Retryable as error:
        message = f"the hub does not say what {source.describe()} is now: {error.reason}"
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, message, details={"network": False}) from error
    return NewestModel(found.source.describe(), found.sha256)
