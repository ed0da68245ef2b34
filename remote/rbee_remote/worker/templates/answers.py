"""What `render` has answered, or why it has not. A process's answer is a template's word: it is checked, and cut."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

from rbee_remote.protocol import ErrorCode, GenerateRequest, ProtocolError, RemoteError, decode
from rbee_remote.system.child import describe_exit
from rbee_remote.system.sanitize import sanitize
from rbee_remote.worker.templates.frames import CPU_S, MEMORY_BYTES, unpack
from rbee_remote.worker.templates.rendered import Rendered

#: Characters of a text that ends an answer.
MOST_STOP = 256
#: Warnings, and stops, that an answer may have.
_MOST_LINES = 16


def read(data: bytes) -> tuple[Rendered | RemoteError, bool]:
    """What the answer says, and whether who gave it is fit for more."""
    try:
        answer = unpack(data)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"text": str()} if rendered := _rendered(answer):
            return rendered, True
        case {"error": dict()}:
            return _cut(RemoteError.decode(answer)), True
        case {"bound": "output"}:
            return bound("output", "writes a prompt that is far longer than what was said"), True
        case {"bound": "memory"}:
            return bound("memory", f"needs more than {MEMORY_BYTES // 2**20} MB of memory"), False
    return bound("answer", "makes the process that renders it answer with nonsense"), False


def ended(status: int) -> RemoteError:
    """Why a process is over that should have answered."""
    if -status == signal.SIGXCPU:
        return bound("time", f"takes more than {CPU_S} s of computing")
    if -status == signal.SIGKILL:
        return bound("memory", "was ended by the system, as when memory runs out")
    details = describe_exit(status)
    return bound("crash", f"breaks the process that renders it ({next(iter(details.values()))})", **details)


def bound(name: str, what: str, **details: str | int) -> RemoteError:
    return RemoteError(
        ErrorCode.MODEL_INVALID,
        f"the model's chat template {what}",
        details={"about": "chat_template", "bound": name, **details},
    )


def _rendered(answer: dict[str, Any]) -> Rendered | None:
    """None where it is none."""
    try:
        rendered = decode(Rendered, answer)
    except ProtocolError:
        return None
    warnings, stops = rendered.warnings[:_MOST_LINES], rendered.stops[:_MOST_LINES]
    if len(rendered.seam) > 1 or not all(0 < len(stop) <= MOST_STOP for stop in stops):
        return None
    return dataclasses.replace(rendered, warnings=tuple(sanitize(line, 1024) for line in warnings), stops=stops)


def blamed(request: GenerateRequest, error: RemoteError) -> RemoteError:
    """An error of a template that came with the request is the request's."""
    details = {key: value for key, value in error.details.items() if key != "about"}
    if not request.chat.template or error.details.get("about") != "chat_template":
        return error
    message = error.message.replace("the model's chat template", "the chat template of the request", 1)
    return RemoteError(ErrorCode.USAGE, message, hint=error.hint, details={"field": "chat.template", **details})


def _cut(error: RemoteError) -> RemoteError:
    """An error that a template may have put together: of the two kinds that there are, and short."""
    code = error.code if error.code in (ErrorCode.USAGE, ErrorCode.MODEL_INVALID) else ErrorCode.MODEL_INVALID
    field = error.details.get("field")
    details = {"field": sanitize(field, 64)} if isinstance(field, str) else {}
    details |= {"about": "chat_template"}
    return RemoteError(code, sanitize(error.message, 1024), hint=sanitize(error.hint, 256), details=details)
