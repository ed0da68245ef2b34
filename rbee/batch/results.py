"""A line of the output, in the form of OpenAI's batches with a field of rbee's own. Pure.

    {"id": "batch_req_INPUT_OPTIONS_NUMBER", "custom_id": …, "response": {"status_code", "request_id", "body"},
     "error": null, "rbee": {"node", "tries", "seconds", "tokens"}}

The id says of which run and which line it is, so that the file by itself tells what is done.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Hex digits of a run's two halves.
_DIGITS = 12
_HEAD = re.compile(rb'\{"id":"batch_req_([0-9a-f]{12})_([0-9a-f]{12})_([0-9]{1,15})",')
#: The end of a line of ours. What stands in an answer's text before it has its quotes escaped.
_TAIL = re.compile(
    rb'"error":(null|\{.*\}),"rbee":\{"node":"[^"]*","tries":[0-9]+,"seconds":[0-9.]+,"tokens":([0-9]+)\}\}$'
)
#: A beginning of such a line that ends before the head does.
_BEGUN = re.compile(
    rb'\{"id":"batch_req_([0-9a-f]{0,12}|[0-9a-f]{12}_[0-9a-f]{0,12}|[0-9a-f]{12}_[0-9a-f]{12}_[0-9]{0,15}"?)'
)
_FIRST = b'{"id":"batch_req_'
_LONGEST_ERROR = 2000


class Run(NamedTuple):
    """What a run's lines have in common. source: of the input's content, options: of what decides the answers; the
    first hex digits of digests."""

    source: str
    options: str

    @classmethod
    def of(cls, source: str, options: str) -> Run:
        return cls(source[:_DIGITS], options[:_DIGITS])


class Known(NamedTuple):
    """A line of the output, as far as a run that goes on has to know it."""

    run: Run
    number: int
    failed: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a line. status: None where it was never asked. body: JSON. error: code and message, None for an
    answer. tokens: of prompt and answer, completion: of the answer alone."""

    status: int | None = None
    request_id: str = ""
    body: Any = None
    error: tuple[str, str] | None = None
    node: str = ""
    tries: int = 0
    seconds: float = 0.0
    tokens: int = 0
    completion: int = 0


def line_of(run: Run, number: int, custom_id: str | None, outcome: Outcome) -> bytes:
    """With its line end, and without any other."""
    response = None
    if outcome.status is not None:
        response = {"status_code": outcome.status, "request_id": outcome.request_id, "body": outcome.body}
    error = None
    if outcome.error is not None:
        code, message = outcome.error
        error = {"code": code, "message": message[:_LONGEST_ERROR], "line": number}
    told = {
        "id": f"batch_req_{run.source}_{run.options}_{number}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
        "rbee": {
            "node": outcome.node,
            "tries": outcome.tries,
            "seconds": round(outcome.seconds, 3),
            "tokens": outcome.tokens,
        },
    }
    return json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n"


def known(line: bytes) -> Known | None:
    """line: with its line end. None for what no run has written, or not whole."""
    head = _HEAD.match(line)
    if head is None or not line.endswith(b"}\n"):
        return None
    tail = _TAIL.search(line[:-1], max(head.end(), len(line) - 16384))
    if tail is None:
        return None
    source, options, number = (group.decode() for group in head.groups())
    return Known(Run(source, options), int(number), tail[1] != b"null", int(tail[2]))


def is_begun(line: bytes) -> bool:
    """Whether it is the beginning of a line of some run, and no whole one."""
    if line.endswith(b"\n"):
        return False
    return bool(_FIRST.startswith(line) or _BEGUN.fullmatch(line) or _HEAD.match(line))
