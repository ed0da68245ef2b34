"""A gateway's side of answers that are cut and go on: what it is told, what it keeps, and what it sends."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rbee_remote.protocol import (
    HEADER_TRACK,
    NO_CHOICE,
    RESUME_FIELD,
    TRACK_COMMENT,
    Resume,
    Sent,
    Tracked,
    decode,
    encode,
)

Body = dict[str, Any]
#: By choice.
Lines = dict[int, list[str]]


@dataclass(frozen=True)
class Told:
    """A comment, and the data lines behind it."""

    tracked: Tracked
    lines: tuple[str, ...]


async def tracked(client: httpx.AsyncClient, path: str, body: Body, resume: Resume | None = None) -> list[Told]:
    """A stream's parts, each line with its comment."""
    extra = {} if resume is None else {RESUME_FIELD: encode(resume)}
    response = await client.post(path, json={**body, "stream": True, **extra}, headers={HEADER_TRACK: "1"})
    assert response.status_code == 200, response.text
    return parts(response.text)


def parts(text: str) -> list[Told]:
    found: list[Told] = []
    assert text.endswith("\n\n")
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(TRACK_COMMENT):
            assert not found or len(found[-1].lines) == found[-1].tracked.lines
            found.append(Told(decode(Tracked, json.loads(block.removeprefix(TRACK_COMMENT))), ()))
        elif not block.startswith(":"):
            found[-1] = dataclasses.replace(found[-1], lines=(*found[-1].lines, same(block)))
            assert len(found[-1].lines) <= found[-1].tracked.lines
    return found


def same(line: str) -> str:
    """A line without what depends on the time, and on what was computed before."""
    if line == "data: [DONE]":
        return line
    name, _, told = line.rpartition("data: ")
    data = json.loads(told)
    whole = data.get("response", data)
    whole.pop("timings", None)
    message = whole.get("message")  # of an error, it is a text
    for holder in (whole, message if isinstance(message, dict) else {}):
        if "cache_read_input_tokens" in (usage := holder.get("usage") or {}):
            usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    if usage := whole.get("usage"):
        for details in ("prompt_tokens_details", "input_tokens_details"):
            usage.pop(details, None)
    return name + json.dumps(data)


def lines_of(told: Sequence[Told]) -> Lines:
    lines: Lines = {NO_CHOICE: []}
    for part in told:
        lines.setdefault(part.tracked.choice, []).extend(part.lines)
    return lines


def tokens_of(told: Sequence[Told]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = defaultdict(list)
    for part in told:
        tokens[part.tracked.choice] += part.tracked.tokens
    return tokens


def cut(told: Sequence[Told], has: Callable[[int, int], int], *, whole: bool = False) -> tuple[Resume, Lines]:
    """What a client has of an answer, and how it goes on. has: how many of a choice's data lines, of that many. whole:
    a token is left out whose lines are not all there."""
    most = {choice: has(choice, len(lines)) for choice, lines in lines_of(told).items()}
    kept: Lines = {choice: [] for choice in most}
    tokens: dict[int, list[int]] = defaultdict(list)
    over: set[int] = set()
    for part in told:
        choice = part.tracked.choice
        if choice in over:
            continue
        room = most[choice] - len(kept[choice])
        kept[choice] += part.lines[:room]
        over |= {choice} if len(part.lines) > room else set()
        if not (choice in over and (whole or not room)):
            tokens[choice] += part.tracked.tokens
    state = told[0].tracked.state
    assert state is not None
    sent = {str(choice): Sent(tuple(tokens[choice]), len(lines)) for choice, lines in kept.items()}
    return Resume(state, sent), kept


def joined(kept: Lines, rest: Sequence[Told]) -> Lines:
    more = lines_of(rest)
    return {choice: kept.get(choice, []) + more.get(choice, []) for choice in {*kept, *more}}
