"""What a command over several nodes says of those that failed; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbee.base.errors import RbeeError
from rbee.render.text import error_data, one_line
from rbee_remote.protocol import ErrorCode


def why(error: RbeeError | None) -> str:
    """An error in a cell: what happened, and the reason where the message has none."""
    if error is None:
        return ""
    reason = error.details.get("reason")
    return one_line(f"{error.message}: {reason}" if reason else error.message)


def partial_failure(errors: Sequence[RbeeError | None]) -> RbeeError | None:
    """What a command over several nodes ends with: nothing, the error of its only node, or PARTIAL_FAILURE."""
    failed = [error for error in errors if error]
    if not failed:
        return None
    if len(errors) == 1:
        return failed[0]
    return RbeeError(ErrorCode.PARTIAL_FAILURE, f"{len(failed)} of {len(errors)} nodes failed")


def error_value(error: RbeeError | None) -> dict[str, Any]:
    return {"error": error_data(error)} if error else {}
