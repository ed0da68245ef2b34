"""The errors that travel from a node to the keeper. Standard library only."""

from __future__ import annotations

import enum
from typing import Any


class ErrorCode(str, enum.Enum):
    """Every error a user can meet, by the name that `--json` shows."""

    INTERNAL = "INTERNAL"
    USAGE = "USAGE"
    CONFIG_INVALID = "CONFIG_INVALID"
    REGISTRY_CORRUPT = "REGISTRY_CORRUPT"
    AUDIT_BROKEN = "AUDIT_BROKEN"
    CONNECTION_TIMEOUT = "CONNECTION_TIMEOUT"
    CONNECTION_LOST = "CONNECTION_LOST"
    AUTH_FAILED = "AUTH_FAILED"
    HOST_KEY_UNKNOWN = "HOST_KEY_UNKNOWN"
    HOST_KEY_MISMATCH = "HOST_KEY_MISMATCH"
    INVALID_API_KEY = "INVALID_API_KEY"
    BOOTSTRAP_FAILED = "BOOTSTRAP_FAILED"
    NODE_UNSUPPORTED = "NODE_UNSUPPORTED"
    DISK_FULL = "DISK_FULL"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    DOWNLOAD_FAILED = "DOWNLOAD_FAILED"
    MODEL_INVALID = "MODEL_INVALID"
    RAM_EXHAUSTED = "RAM_EXHAUSTED"
    VRAM_EXHAUSTED = "VRAM_EXHAUSTED"
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    WORKER_CRASHED = "WORKER_CRASHED"
    WORKER_GONE = "WORKER_GONE"  # never shown: the keeper falls back to phase 2
    REQUEST_GONE = "REQUEST_GONE"  # never shown: a worker forgets ended requests, and the answer is lost then
    LOADING_TIMEOUT = "LOADING_TIMEOUT"
    ALL_SLOTS_BUSY = "ALL_SLOTS_BUSY"
    PARTIAL_FAILURE = "PARTIAL_FAILURE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    REQUEST_CANCELED = "REQUEST_CANCELED"


class RemoteError(Exception):
    """An expected failure on a node. Travels as `{"error": {code, message, details, hint}}`.

    details: JSON values, shown to the user as `key value` pairs.
    """

    def __init__(self, code: ErrorCode, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details or {}

    def encode(self) -> dict[str, Any]:
        body = {"code": self.code.value, "message": self.message, "details": self.details, "hint": self.hint}
        return {"error": body}

    @classmethod
    def decode(cls, data: Any) -> RemoteError:
        """The error inside `data`, NODE_UNSUPPORTED where it names no code that we know. Never raises."""
        body = data.get("error") if isinstance(data, dict) else None
        if not isinstance(body, dict):
            return cls(ErrorCode.NODE_UNSUPPORTED, "the node answered with something that is no rbee error")
        try:
            code = ErrorCode(body.get("code"))
        except ValueError:
            code = ErrorCode.NODE_UNSUPPORTED
        message, hint, details = (body.get(name) for name in ("message", "hint", "details"))
        return cls(
            code,
            message if isinstance(message, str) and message else "the node reports an error without saying which",
            hint=hint if isinstance(hint, str) else "",
            details=details if isinstance(details, dict) else {},
        )
