"""What a gateway is told of a stream, so that it can have the answer go on on another worker, and how it does so here.

Rules
- A comment and the lines that it tells of are sent at once: nobody has one without knowing of the other.
- A token is told once, by the worker that chose it.
- What a body says is checked before anything is computed, as far as a body alone can tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee_remote.protocol import (
    HEADER_REQUEST,
    HEADER_TRACK,
    HEADER_USAGE,
    NO_CHOICE,
    RESUME_FIELD,
    TRACK_COMMENT,
    ProtocolError,
    Resume,
    Sent,
    TrackedUsage,
    decode,
    encode,
)
from rbee_remote.worker.requests.tracking import Tracking, refused

_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_MODEL = 1024
#: Seeds are llama.cpp's uint32, whose largest means "choose one".
SEEDS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class State:
    """What an answer's first part has to hand on: its head, and the seed of each choice."""

    id: str
    created: int
    model: str
    fingerprint: str
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says beside its own content. told: by comments, or by a header of a whole answer. name: of the
    HTTP request, for the log, "" for none. resume: None for an answer that begins here."""

    told: bool = False
    name: str = ""
    resume: Resume | None = None


#: Nearly every request.
NOTHING = Asked()


def asked_of(headers: Mapping[str, str], data: Any) -> Asked:
    """headers: with names in any case. data: the body. Raises RemoteError USAGE."""
    told, name = headers.get(HEADER_TRACK) == "1", headers.get(HEADER_REQUEST, "")
    given = data.get(RESUME_FIELD) if isinstance(data, dict) else None
    if not (told or name) and given is None:
        return NOTHING
    return Asked(told, name if _WORD.fullmatch(name) else "", None if given is None else _resume(given))


def _resume(given: Any) -> Resume:
    try:
        return decode(Resume, given)
    except ProtocolError as error:
        raise refused(str(error).removeprefix("Resume.")) from error


def usage_headers(usage: TrackedUsage) -> dict[str, str]:
    """Of a whole answer."""
    return {HEADER_USAGE: json.dumps(encode(usage))}


def state_of(resume: Resume, seeds: Sequence[int | None]) -> State:
    """seeds: which each choice asks for. Raises RemoteError USAGE."""
    try:
        state = decode(State, resume.state)
    except ProtocolError as error:
        raise refused(f"state: {str(error).removeprefix('State.')}") from error
    words = _WORD.fullmatch(state.id) and _WORD.fullmatch(state.fingerprint) and len(state.model) <= _MOST_MODEL
    fits = len(state.seeds) == len(seeds) and all(
        0 <= seed < SEEDS and asked in (None, seed) for seed, asked in zip(state.seeds, seeds, strict=True)
    )
    if not words or not fits:
        raise refused("state: is not what a worker told of this request")
    return state


def sent_of(resume: Resume | None, choices: int) -> dict[int, Sent]:
    """Of each choice, NO_CHOICE included. Raises RemoteError USAGE."""
    known = {str(number): number for number in (*range(choices), NO_CHOICE)}
    given = resume.choices if resume else {}
    for name, sent in given.items():
        if name not in known:
            raise refused(f"choices: the answer has no choice {name!r:.40}")
        if sent.lines < 0 or (sent.tokens and name == str(NO_CHOICE)):
            raise refused(f"choices.{name}: is not what a worker told of this request")
    return {number: given.get(name, Sent()) for name, number in known.items()}


@dataclass(slots=True)
class _Left:
    """Of what was sent of a choice: tokens that come again, and data lines that the client has."""

    tokens: int
    lines: int


class Tracker:
    """Of one stream. told: by comments. has_state: whether the answer can go on elsewhere, for which they tell its
    state."""

    def __init__(self, state: State, sent: Mapping[int, Sent], *, told: bool, has_state: bool = True) -> None:
        self.state = state
        self._told = told
        self._sent = sent
        self._left = {choice: _Left(len(each.tokens), each.lines) for choice, each in sent.items()}
        self._state_is_told = not has_state
        self._counts: dict[int, int] = {}

    def trackings(self) -> list[Tracking]:
        """Of each choice's request."""
        seeds = enumerate(self.state.seeds)
        return [Tracking(f"{self.state.id}/{number}", seed, self._sent[number].tokens) for number, seed in seeds]

    def text(self, choice: int, lines: Sequence[str], token: dict[str, Any] | None) -> str:
        """What to send for `lines` of a choice. token: what gave them, as in `Choice.feed`; None for the choice's
        beginning and end.

        Raises RemoteError USAGE where a token comes again whose probability the client does not have yet.
        """
        left, tokens = self._left[choice], ()  # type: _Left, tuple[int, ...]
        missing = lines[left.lines :]
        left.lines = max(0, left.lines - len(lines))
        if token is not None:
            self._counts[choice] = token["tokens"]
            if "token" in token and not left.tokens:
                tokens = (token["token"],)
            elif "token" in token:
                left.tokens -= 1
                if missing and token["logprobs"] is not None:
                    raise refused(f"choices.{choice}: with logprobs, leave out tokens whose lines are missing")
        return self._comment(choice, tokens, len(missing)) + "".join(missing)

    def last(self, lines: Sequence[str], usage: TrackedUsage) -> str:
        """What to send for the lines of no choice."""
        missing = lines[self._left[NO_CHOICE].lines :]
        return self._comment(NO_CHOICE, (), len(missing), usage) + "".join(missing)

    def error(self, lines: Sequence[str], usage: TrackedUsage) -> str:
        """What to send for the lines that end a stream before its time."""
        so_far = TrackedUsage(usage.prompt, usage.cached, sum(self._counts.values()))
        return self._comment(NO_CHOICE, (), len(lines), so_far) + "".join(lines)

    def _comment(self, choice: int, tokens: tuple[int, ...], lines: int, usage: TrackedUsage | None = None) -> str:
        """A `Tracked`, without what is None."""
        if not self._told or not (tokens or lines or usage):
            return ""
        said: dict[str, Any] = {"choice": choice, "tokens": tokens, "lines": lines}
        if not self._state_is_told:
            self._state_is_told = True
            said["state"] = encode(self.state)
        if usage:
            said["usage"] = encode(usage)
        return f"{TRACK_COMMENT}{json.dumps(said)}\n\n"
