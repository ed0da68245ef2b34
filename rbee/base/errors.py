"""The errors that a user can meet, each with its exit status.

    RbeeError                    code, message, hint, details
    ├── UsageError               USAGE                                   exit 2
    ├── ConfigError              CONFIG_INVALID, REGISTRY_CORRUPT, AUDIT_BROKEN  exit 2
    ├── ConnectError             CONNECTION_TIMEOUT, CONNECTION_LOST     exit 3
    ├── RefusedError             AUTH_FAILED, HOST_KEY_*                 exit 4
    └── NodeError                whatever a node reported, or bootstrap found   exit 5 to 9, 124

Anything else that reaches the command line is a bug: INTERNAL, exit 1, and its traceback goes to the log.
Ctrl-C is `asyncio.CancelledError` until the command line turns it into REQUEST_CANCELED, exit 130.
"""

from __future__ import annotations

from typing import Any, Self

from rbee_remote.protocol import ErrorCode, RemoteError

EXIT_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INTERNAL: 1,
    ErrorCode.USAGE: 2,
    ErrorCode.CONFIG_INVALID: 2,
    ErrorCode.REGISTRY_CORRUPT: 2,
    ErrorCode.AUDIT_BROKEN: 2,
    ErrorCode.CONNECTION_TIMEOUT: 3,
    ErrorCode.CONNECTION_LOST: 3,
    ErrorCode.AUTH_FAILED: 4,
    ErrorCode.HOST_KEY_UNKNOWN: 4,
    ErrorCode.HOST_KEY_MISMATCH: 4,
    ErrorCode.INVALID_API_KEY: 4,
    ErrorCode.BOOTSTRAP_FAILED: 5,
    ErrorCode.NODE_UNSUPPORTED: 5,
    ErrorCode.INVALID_RESPONSE: 5,
    ErrorCode.CLEANUP_FAILED: 5,
    ErrorCode.DISK_FULL: 5,
    ErrorCode.VERSION_MISMATCH: 5,
    ErrorCode.MODEL_NOT_FOUND: 6,
    ErrorCode.DOWNLOAD_FAILED: 6,
    ErrorCode.MODEL_INVALID: 6,
    ErrorCode.RAM_EXHAUSTED: 7,
    ErrorCode.VRAM_EXHAUSTED: 7,
    ErrorCode.BACKEND_UNAVAILABLE: 7,
    ErrorCode.WORKER_CRASHED: 8,
    ErrorCode.WORKER_GONE: 8,
    ErrorCode.REQUEST_GONE: 8,
    ErrorCode.LOG_NOT_FOUND: 8,
    ErrorCode.HELPER_FAILED: 8,
    ErrorCode.LOADING_TIMEOUT: 8,
    ErrorCode.ALL_SLOTS_BUSY: 9,
    ErrorCode.NODE_BUSY: 9,
    ErrorCode.IN_USE: 9,
    ErrorCode.RATE_LIMITED: 9,
    ErrorCode.READER_TOO_SLOW: 9,
    ErrorCode.PARTIAL_FAILURE: 10,
    ErrorCode.DEADLINE_EXCEEDED: 124,
    ErrorCode.REQUEST_CANCELED: 130,
}


class RbeeError(Exception):
    """An expected failure: one line of what happened, what matters about it, and what to do."""

    def __init__(self, code: ErrorCode, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details or {}

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.code]

    def after(self, progress: str, details: dict[str, Any]) -> Self:
        """Another error of this kind, which says how far things had come; to be raised from this one."""
        error = self.__class__.__new__(self.__class__)
        RbeeError.__init__(
            error, self.code, f"{self.message}, after {progress}", hint=self.hint, details={**self.details, **details}
        )
        return error


class ElsewhereError(BaseException):
    """No failure: a command that is run for another process cannot be done here as it would be done there, and nothing
    has been done yet. No Exception, because nobody on its way may take it for a failure of a node."""


class UsageError(RbeeError):
    """The command line asks for something that does not exist or cannot be."""

    def __init__(self, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(ErrorCode.USAGE, message, hint=hint, details=details)


class ConfigError(RbeeError):
    """The inventory, the registry or a setting is wrong."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        details: dict[str, Any] | None = None,
        code: ErrorCode = ErrorCode.CONFIG_INVALID,
    ) -> None:
        super().__init__(code, message, hint=hint, details=details)


class ConnectError(RbeeError):
    """The node does not answer, or stopped answering. Worth another try."""


class RefusedError(RbeeError):
    """SSH refused us, or we refused the host key. Never worth another try."""


class NodeError(RbeeError):
    """The node answered, and what it said is that this cannot be done."""

    @classmethod
    def from_remote(cls, error: RemoteError) -> NodeError:
        """Clients of the worker's HTTP API have no options, so what to do at the keyboard about a chat template is said
        here."""
        details = {key: value for key, value in error.details.items() if key != "about"}
        hint = error.hint
        if error.details.get("about") == "chat_template" and not hint:
            hint = "use --raw to send the prompt without the model's chat template, or --template FILE for another one"
        return cls(error.code, error.message, hint=hint, details=details)
