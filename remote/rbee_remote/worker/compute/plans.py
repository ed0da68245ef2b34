"""What the scheduler decides on, and what it decides: requests with their tokens, and a step that they share. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rbee_remote.worker.compute.prefix import UNKNOWN, Move, Origin
from rbee_remote.worker.engine.interface import BatchToken

#: Tokens to embed that one step takes: each has an output as wide as the vocabulary.
EMBEDDED_AT_ONCE = 32


@dataclass(slots=True)
class Entry:
    """A request's tokens, the prompt first; `slot` None while it is queued.

    reuse: whether it may build on what others computed. embeds: each of its tokens has an output, and none is sampled.
    begun: its slot's memory is its own. follows: the request whose prompt it waits for, and how many tokens of it.
    at_once: how many of the first tokens may share steps. origin: of its prompt. background: whether it gives way.
    exact: tokens that it has chosen are not to be computed at once when it has to begin again. number: its place among
    those that came. unseated: it had a seat once, and waits for another.
    """

    key: str
    tokens: list[int]
    reuse: bool
    embeds: bool
    slot: int | None = None
    computed: int = 0
    prompt: int = 0
    begun: bool = False
    follows: tuple[str, int] | None = None
    at_once: int = sys.maxsize
    origin: Origin = UNKNOWN
    background: bool = False
    exact: bool = False
    number: int = 0
    unseated: bool = False

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the adapters that compute it."""
        return self.origin.scales

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def next(self) -> int:
        """Of the missing ones, how many the next step may have."""
        missing = len(self.tokens) - self.computed
        return missing if len(self.tokens) <= self.at_once else min(missing, max(self.at_once - self.computed, 1))


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a plan that belongs to one request: `count` tokens from position `start` in `slot`.

    first: index in the batch of its first token. row: index of the output to sample from, None while the prompt is not
    whole.
    """

    key: str
    slot: int
    start: int
    count: int
    first: int
    row: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. moves: what has to happen to the slots' memory before it, in order, one for each request that begins;
    the step may have no room for its tokens yet. embeds: whether the batch has outputs that are embeddings.
    scales: of the adapters that compute all of it. unseated: requests that gave up a seat, which happened before the
    moves, and the slots they had."""

    batch: tuple[BatchToken, ...] = ()
    spans: tuple[Span, ...] = ()
    moves: tuple[Move, ...] = ()
    embeds: bool = False
    scales: tuple[float, ...] = ()
    unseated: tuple[tuple[str, int], ...] = ()


def divide(budget: int, prompts: Sequence[Entry]) -> list[tuple[Entry, int]]:
    """Tokens of each prompt that is not whole: the eldest gets half of the budget, the next half of the rest, and what
    is left over goes round again. So each moves on, and a short one is not kept waiting by a long one before it.

    Of texts to embed only the eldest moves on.
    """
    embedded = next((entry for entry in prompts if entry.embeds), None)
    wanted = {entry.key: entry.next for entry in prompts if not entry.embeds}
    if embedded:
        wanted[embedded.key] = min(embedded.missing, EMBEDDED_AT_ONCE)
        prompts = [entry for entry in prompts if entry.key in wanted]
    shares = dict.fromkeys(wanted, 0)
    for last_round in (False, True):
        for entry in prompts:
            most = budget if last_round or entry is prompts[-1] else -(-budget // 2)
            more = min(most, wanted[entry.key] - shares[entry.key])
            shares[entry.key] += more
            budget -= more
    return [(entry, shares[entry.key]) for entry in prompts if shares[entry.key]]


def lay_out(
    shares: Sequence[tuple[Entry, int]],
    moves: tuple[Move, ...],
    unseated: tuple[tuple[str, int], ...],
    *,
    each: bool = True,
) -> Plan:
    """each: whether each token of a text to embed has an output, not the last one alone."""
    batch: list[BatchToken] = []
    spans: list[Span] = []
    for entry, count in shares:
        assert entry.slot is not None
        start, end = entry.computed, entry.computed + count
        whole = end == len(entry.tokens)
        first = len(batch)
        batch.extend(
            BatchToken(entry.tokens[pos], pos, entry.slot, (each and entry.embeds) or (whole and pos == end - 1))
            for pos in range(start, end)
        )
        spans.append(Span(entry.key, entry.slot, start, count, first, len(batch) - 1 if whole else None))
    return Plan(
        tuple(batch),
        tuple(spans),
        moves,
        any(entry.embeds and (each or span.row is not None) for (entry, _), span in zip(shares, spans, strict=True)),
        shares[0][0].scales if shares else (),
        unseated,
    )
