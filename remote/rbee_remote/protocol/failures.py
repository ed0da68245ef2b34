"""The errors that travel from a node to the keeper. Standard library only."""

from __future__ import annotations

import enum
from typing import Any


class ErrorCode(str, enum.Enum):
    """Every error a user can meet, by the name that `--json` shows, each with what it means."""

    #: A bug in rbee, or an error of the operating system that has no code of its own.
    INTERNAL = "INTERNAL"
    #: The command, or a request to a hive or worker, asks for something that does not exist or cannot be.
    USAGE = "USAGE"
    #: The inventory, a setting or a file of the keeper is wrong or cannot be read.
    CONFIG_INVALID = "CONFIG_INVALID"
    #: workers.db is damaged; the next command sets it aside and makes another.
    REGISTRY_CORRUPT = "REGISTRY_CORRUPT"
    #: An audit log was changed, or lines of it are missing.
    AUDIT_BROKEN = "AUDIT_BROKEN"
    #: The node, or a process on it, cannot be reached or gives no answer in time.
    CONNECTION_TIMEOUT = "CONNECTION_TIMEOUT"
    #: The connection to the node ended and no other could be opened in its place.
    CONNECTION_LOST = "CONNECTION_LOST"
    #: The SSH server of the node or of a jump host did not let the user in.
    AUTH_FAILED = "AUTH_FAILED"
    #: The host key is neither in known_hosts nor pinned, or was not accepted.
    HOST_KEY_UNKNOWN = "HOST_KEY_UNKNOWN"
    #: The host key is another than the one known, or is revoked.
    HOST_KEY_MISMATCH = "HOST_KEY_MISMATCH"
    #: A request to the gateway has no API key, or one that it does not know.
    INVALID_API_KEY = "INVALID_API_KEY"
    #: Something of rbee could not be built, copied to the node or started there.
    BOOTSTRAP_FAILED = "BOOTSTRAP_FAILED"
    #: The node, the account or a setting of theirs does not let rbee run there.
    NODE_UNSUPPORTED = "NODE_UNSUPPORTED"
    #: The answer of the node is not one that rbee gives there: malformed, contradictory or too long.
    INVALID_RESPONSE = "INVALID_RESPONSE"
    #: A process of rbee does not end, or a file of rbee cannot be removed.
    CLEANUP_FAILED = "CLEANUP_FAILED"
    #: A disk is full, on the node or here.
    DISK_FULL = "DISK_FULL"
    #: The hive on the node speaks a newer protocol than this rbee.
    VERSION_MISMATCH = "VERSION_MISMATCH"
    #: There is no such model or file, on the node or where it was to come from.
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    #: The model could not be fetched, or arrived with a wrong checksum.
    DOWNLOAD_FAILED = "DOWNLOAD_FAILED"
    #: The model is there, but cannot be used: a damaged file, or one that llama.cpp or its chat template fails on.
    MODEL_INVALID = "MODEL_INVALID"
    #: The model does not fit into the RAM of the node.
    RAM_EXHAUSTED = "RAM_EXHAUSTED"
    #: The model does not fit into the memory of the GPU.
    VRAM_EXHAUSTED = "VRAM_EXHAUSTED"
    #: The node has no such GPU, or its runtime was built without it.
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    #: The worker died or hung; before its first token another one takes over. The error names the file with the text.
    WORKER_CRASHED = "WORKER_CRASHED"
    #: No such worker or hive runs any more. `rbee infer` starts another, and shows this only if that one ends as well.
    WORKER_GONE = "WORKER_GONE"
    #: The worker has forgotten the request. Between keeper and worker only: a user sees CONNECTION_LOST.
    REQUEST_GONE = "REQUEST_GONE"
    #: The node has no log of that worker or hive.
    LOG_NOT_FOUND = "LOG_NOT_FOUND"
    #: A process that a hive starts to read or measure a model ended without a result.
    HELPER_FAILED = "HELPER_FAILED"
    #: Loading the model made no progress for too long.
    LOADING_TIMEOUT = "LOADING_TIMEOUT"
    #: No slot, place in the queue or connection is free: the same request may be taken seconds later.
    ALL_SLOTS_BUSY = "ALL_SLOTS_BUSY"
    #: There is no room for another worker until one that is at work is done.
    NODE_BUSY = "NODE_BUSY"
    #: What was to be ended, removed or measured is in use: by a request, a worker, a keeper or a gateway.
    IN_USE = "IN_USE"
    #: An API key has as many requests open, or has made as many within a minute, as it may.
    RATE_LIMITED = "RATE_LIMITED"
    #: A client of the gateway read its answer too slowly and was cut off. In the gateway's logs and metrics only.
    READER_TOO_SLOW = "READER_TOO_SLOW"
    #: Some of several nodes failed.
    PARTIAL_FAILURE = "PARTIAL_FAILURE"
    #: The time of `--timeout` was over.
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    #: Canceled: Ctrl-C, or whoever asked went away.
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
        """The error inside `data`, INVALID_RESPONSE where it names no code that we know. Never raises."""
        body = data.get("error") if isinstance(data, dict) else None
        if not isinstance(body, dict):
            return cls(ErrorCode.INVALID_RESPONSE, "the node answered with something that is not an rbee error")
        try:
            code = ErrorCode(body.get("code"))
        except ValueError:
            code = ErrorCode.INVALID_RESPONSE
        message, hint, details = (body.get(name) for name in ("message", "hint", "details"))
        return cls(
            code,
            message if isinstance(message, str) and message else "the node reports an error without saying which",
            hint=hint if isinstance(hint, str) else "",
            details=details if isinstance(details, dict) else {},
        )
