"""The keeper's record of who did what: `log/audit.log` below rbee's home, one line for each action.

    with audit.recorded(settings, "hive.stop", emit=emit, node="gpu1") as details:
        details["workers"] = 2

Others use `record`, `recorded` and `head`; `rbee audit` uses `check`; `infer` takes `place_of` from `cross_check`.

Rules
- A prompt, an answer, a key, a token or a variable's value is never a detail.
- What cannot be written is said, and fails nothing: the action has happened, or will.
- Every warm `infer` comes by here, so nothing heavy is imported.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rbee.base import trusted_files
from rbee.base.errors import ElsewhereError, RbeeError
from rbee.base.events import Emit, Notice
from rbee.base.settings import keeper_id, make_private_folder
from rbee.base.who import host, user
from rbee.render import OutputClosed
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.audit import AUDIT_HEAD, AUDIT_LOG
from rbee_remote.protocol.audit_log import AuditLog

if TYPE_CHECKING:
    from rbee.base.settings import Settings

OK = "ok"
#: For errors about who else can write it.
WHAT = "the audit log"
#: Characters of a detail that are kept: names and reasons, of which a node may make something endless.
LONGEST = 500


def record(settings: Settings, action: str, *, emit: Emit, node: str = "", outcome: str = OK, **details: Any) -> None:
    """Append a line. What keeps it from being written is said as a Notice.

    action: what was done, such as "worker.stop". node: where, "" for the keeper itself. outcome: OK, or the name of an
    error's code. details: JSON values, in the order in which they are to stand; None is left out.
    """
    try:
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "keeper": keeper_id(settings),
            "user": user(),
            "host": host(),
            "action": action,
            "node": _short(node),
            "outcome": outcome,
            **{name: _short(value) for name, value in details.items() if value is not None},
        }
        make_private_folder(settings.log)
        for name in (AUDIT_LOG, AUDIT_HEAD):
            trusted_files.check_entry(settings.log / name, WHAT)
        AuditLog(settings.log).append(entry)
    except RbeeError as error:
        emit(Notice(f"{action} could not be written to the audit log: {error.message}"))
    except OSError as error:
        emit(Notice(f"{action} could not be written to the audit log {settings.log}: {error.strerror or error}"))


@contextmanager
def recorded(
    settings: Settings, action: str, *, emit: Emit, node: str = "", **details: Any
) -> Iterator[dict[str, Any]]:
    """Record what the body did, once it is over, and how it ended. Yields the details, for the body to add to.

    A detail `node` takes the place of the argument, where only the body finds out.
    """
    outcome: str | None = OK
    try:
        yield details
    except ElsewhereError:
        outcome = None  # whoever does it records it
        raise
    except RbeeError as error:
        outcome = error.code.value
        raise
    except (asyncio.CancelledError, KeyboardInterrupt, OutputClosed):
        outcome = ErrorCode.REQUEST_CANCELED.value
        raise
    except BaseException:
        outcome = ErrorCode.INTERNAL.value
        raise
    finally:
        where = details.pop("node", node)
        if outcome is not None:
            record(settings, action, emit=emit, node=where, outcome=outcome, **details)


def head(settings: Settings) -> str:
    """The digest of the record's last line, for the record of a node; "" where there is none."""
    return AuditLog(settings.log).head()


def _short(value: Any) -> Any:
    """`value`, or as much of its text as is kept: a line has to end somewhere."""
    if isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:LONGEST]}…" if len(text) > LONGEST else value
