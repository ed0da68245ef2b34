"""Which headers pass the gateway, in either direction: those that are named here, and no others. Pure.

Keys, cookies and what concerns one connection alone never reach a worker, and what a worker says of its own connection
never reaches a client.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from rbee.gateway.requests.errors import wrong
from rbee_remote.protocol import (
    HEADER_REQUEST,
    HEADER_TRACK,
    HEADER_USAGE,
    ProtocolError,
    TrackedUsage,
    decode,
    parse_json,
)

#: Seconds that the whole of a request may take, waiting included.
HEADER_TIMEOUT = "x-rbee-timeout"
HEADER_REQUEST_ID = "x-request-id"
MEDIA_TYPE_SSE = "text/event-stream"
#: Of every stream: nothing on the way keeps it, or keeps it back (nginx would).
SSE = {"content-type": f"{MEDIA_TYPE_SSE}; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
#: A day.
LONGEST_TIMEOUT_S = 86400.0

_TO_WORKER = ("accept", "anthropic-version", "anthropic-beta", "tracestate")
_TO_CLIENT = ("content-type", "cache-control", "retry-after", "allow")
_LONGEST = 512

_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's own, if it is a word, else one made here."""
    said = headers.get(HEADER_REQUEST_ID, "")
    return said if _WORD.fullmatch(said) else uuid.uuid4().hex


def traceparent(headers: Mapping[str, str]) -> str:
    """The caller's, "" for none."""
    said = headers.get("traceparent", "")
    return said if _TRACEPARENT.fullmatch(said) else ""


def timeout_s(headers: Mapping[str, str]) -> float | None:
    """What the caller allows, None where it does not say. Raises UsageError."""
    said = headers.get(HEADER_TIMEOUT)
    if said is None:
        return None
    seconds = float(said) if _SECONDS.fullmatch(said) else 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT_S:
        raise wrong(
            "X-Rbee-Timeout", f"expected seconds, more than 0 and at most {LONGEST_TIMEOUT_S:g}, got {said!r:.40}"
        )
    return seconds


def to_worker(headers: Mapping[str, str], request_id: str, traceparent: str) -> dict[str, str]:
    """headers: the caller's, names in lower case."""
    passed = {name: headers[name] for name in _TO_WORKER if len(headers.get(name, "")) in range(1, _LONGEST)}
    if traceparent:
        passed["traceparent"] = traceparent
    return {**passed, "content-type": "application/json", HEADER_REQUEST: request_id, HEADER_TRACK: "1"}


def to_client(headers: Mapping[str, str]) -> dict[str, str]:
    """headers: the worker's, names in lower case."""
    return {name: headers[name] for name in _TO_CLIENT if name in headers}


def is_stream(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE_SSE


def usage(headers: Mapping[str, str]) -> TrackedUsage | None:
    """What a worker says of a whole answer, None for nothing that can be read. headers: names in lower case."""
    said = headers.get(HEADER_USAGE.lower(), "")
    try:
        return decode(TrackedUsage, parse_json(said)) if said else None
    except ProtocolError:
        return None
