"""What is said of a command over the link that did not come to its end there."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from datetime import datetime

from rbee import audit
from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import silent
from rbee.base.settings import Settings
from rbee.cli import main
from rbee.cli.shell import State
from rbee.infer.partial import write_private
from rbee.link.client import BadOutputError, LostError
from rbee_remote.protocol import ErrorCode


def ended(words: Sequence[str], error: KeyboardInterrupt | LostError | BadOutputError) -> int:
    """Say how it ended; the exit status."""
    match error:
        case BadOutputError() if error.number == errno.EPIPE:
            return 0  # whoever read it had enough
        case BadOutputError():
            failure = RbeeError(
                ErrorCode.DISK_FULL,
                f"cannot write the output: {error}",
                hint="check the file or program that the output goes to",
            )
        case LostError():
            failure = _lost(error)
            _record(words, failure)
        case _:
            failure = RbeeError(ErrorCode.REQUEST_CANCELED, "canceled")
    return main.fail(failure, State(), words)


def _lost(error: LostError) -> RbeeError:
    details = {"reason": str(error)}
    if error.printed:
        details |= _save(error.printed)
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        "lost the rbee process that holds the connection, before the command was finished",
        hint="try again; what runs on the node ends by itself",
        details=details,
    )


def _record(words: Sequence[str], failure: RbeeError) -> None:
    """An answer that broke off stands in the audit log, which its process can write no more."""
    if "infer" in words:
        with contextlib.suppress(RbeeError):
            audit.record(Settings.from_environment(), "infer", emit=silent, outcome=failure.code.value)


def _save(printed: str) -> dict[str, str]:
    """What stdout got, in the file of an answer that broke off."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        path = Settings.from_environment().log / f"answer-{stamp}-link.txt"
        write_private(path, printed)
    except (OSError, RbeeError) as error:
        return {"not saved": str(error)}
    return {"saved": str(path)}
