"""Which tokens the next step computes: continuous batching over a fixed number of slots. Pure.

Always true
- A request is queued or seated, never both; a seat is a slot from 0 to slots - 1, held by one request.
- Requests take seats in the order in which they came, and only `plan` seats them.
- `computed` tokens of a request that has begun are in its slot's memory, in positions 0 to computed - 1. Only `plan`
  (once, when the request begins), `commit` and `rewind` move it, so a step that failed or was interrupted is simply
  planned again.
- A request whose tokens are all computed waits for `append`. One token missing is decoding, more is prefill: there
  is no other difference, and both share a step. Decoding goes first, and where somebody decodes, prefill gets a bounded
  part of the step: a long prompt never delays a token by more than that.
- Tokens behind `at_once` are decoded, one in a step, though all are known: together they would differ in their last
  bits.
- What a request leaves in its slot's memory is known, and the next one builds on what it has in common with it
  (`prefix`).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rbee_remote.worker.compute import texts
from rbee_remote.worker.compute.prefix import UNKNOWN, Memories, Move, Origin, Reusable, worth_waiting_for
from rbee_remote.worker.compute.turns import Turns
from rbee_remote.worker.engine.interface import BatchToken, Engine

#: Tokens to embed that one step takes: each has an output as wide as the vocabulary.
EMBEDDED_AT_ONCE = 32

#: How texts to embed are computed: beside requests that generate, each token with an output of its own; or, where
#: nobody generates, as `texts` says.
Texts = Literal["each", "whole", "last"]


class QueueFull(Exception):
    """Every slot and every place in the queue is taken."""


@dataclass(slots=True)
class Entry:
    """A request's tokens, the prompt first; `slot` None while it is queued.

    reuse: whether it may build on what others computed. embeds: each of its tokens has an output, and none is sampled.
    begun: its slot's memory is its own. follows: the request whose prompt it waits for, and how many tokens of it.
    at_once: how many of the first tokens may share steps. origin: of its prompt.
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
    scales: of the adapters that compute all of it."""

    batch: tuple[BatchToken, ...] = ()
    spans: tuple[Span, ...] = ()
    moves: tuple[Move, ...] = ()
    embeds: bool = False
    scales: tuple[float, ...] = ()


@dataclass(slots=True)
class Scheduler:
    """slots: requests computed at once. queue: requests that may wait. n_batch: tokens of a step at most.

    shares: whether a sequence can take over a part of what another one computes just now. forgets: whether a sequence
    loses what lies far behind as it grows. texts: how texts to embed are computed.
    """

    slots: int
    queue: int
    n_batch: int
    shares: bool = True
    forgets: bool = False
    texts: Texts = "each"
    _embeds_next: bool = True
    _turns: Turns[tuple[float, ...]] = field(default_factory=Turns)  # by scales of adapters
    _changed: set[int] = field(default_factory=set)  # slots whose memory `told` has not told of as it is now
    _queued: deque[Entry] = field(default_factory=deque)
    _seated: dict[str, Entry] = field(default_factory=dict)
    _memories: Memories = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.slots <= self.n_batch:
            raise ValueError(f"slots must be from 1 to n_batch ({self.n_batch}), got {self.slots}")
        self._memories = Memories(self.slots)

    @property
    def running(self) -> int:
        return len(self._seated)

    @property
    def waiting(self) -> int:
        return len(self._queued)

    def entry(self, key: str) -> Entry | None:
        """The request of that key, queued or seated."""
        return self._seated.get(key) or next((entry for entry in self._queued if entry.key == key), None)

    def submit(
        self,
        key: str,
        prompt: Sequence[int],
        *,
        reuse: bool = True,
        embeds: bool = False,
        at_once: int | None = None,
        digests: tuple[str, ...] = (),
        scales: tuple[float, ...] = (),
    ) -> None:
        """Queue a request. at_once: None for all of its tokens. digests and scales: as in `Origin`. Raises QueueFull,
        ValueError for an empty prompt or a key that is in use."""
        if not prompt or self.entry(key):
            raise ValueError("a request needs a prompt and a key of its own")
        if len(self._seated) + len(self._queued) >= self.slots + self.queue:
            raise QueueFull
        reuse = reuse and (self.texts == "last" or (self.texts == "each" and not embeds))
        entry = Entry(key, list(prompt), reuse, embeds, prompt=len(prompt))
        if at_once is not None:
            entry.at_once, entry.prompt = at_once, min(at_once, len(prompt))
        entry.origin = Origin(digests, entry.prompt, scales)
        self._queued.append(entry)

    def remove(self, key: str) -> int | None:
        """Take a request out wherever it is; the slot that it leaves, None if it had none."""
        entry = self._seated.pop(key, None)
        if entry is None:
            self._queued = deque(entry for entry in self._queued if entry.key != key)
            return None
        assert entry.slot is not None
        if entry.begun:
            self._memories.leave(entry.slot, entry.tokens[: entry.computed], entry.origin)
            self._changed.add(entry.slot)
        return entry.slot

    def plan(self, *, prefill: int | None = None, reusable: Reusable = lambda _, count: count) -> Plan:
        """Seat and begin who can be, then fill the step: one token of each that decodes, prompts with what is left.

        prefill: prompt tokens of the step at most while somebody decodes, None for all that fit.
        """
        self._seat()
        moves = tuple(self._begin(reusable))
        begun = [entry for entry in self._seated.values() if entry.begun]
        ready = self._turns.take(begun, lambda entry: entry.scales)
        if self.texts != "each":
            return _lay_out(self._texts(ready), moves, each=self.texts == "whole")
        ready = self._take_turns(ready)
        decoding = [(entry, 1) for entry in ready if entry.next == 1]
        budget = self.n_batch - len(decoding)
        if prefill is not None and any(entry.next == 1 for entry in begun):
            budget = min(budget, prefill)
        shares = decoding + _divide(budget, [entry for entry in ready if entry.next > 1])
        return _lay_out(shares, moves)

    def commit(self, plan: Plan) -> None:
        """The engine computed `plan`. Requests removed meanwhile are passed over."""
        for span in plan.spans:
            entry = self._seated.get(span.key)
            if entry is not None:
                entry.computed = span.start + span.count
                if span.start < entry.prompt <= entry.computed:
                    self._changed.add(span.slot)

    def append(self, key: str, token: int) -> None:
        """The token sampled after everything of `key` was computed."""
        entry = self._seated[key]
        if entry.missing:
            raise ValueError("a token was sampled before its context was computed")
        entry.tokens.append(token)

    def rewind(self, key: str) -> None:
        """The engine lost what it had computed for `key`: all of it is planned again."""
        entry = self._seated[key]
        entry.computed = 0
        if entry.begun and entry.slot is not None:
            self._changed.add(entry.slot)

    def forget(self) -> None:
        """The engine's memory is empty. Only while nobody is seated."""
        assert not self._seated
        self._memories = Memories(self.slots)
        self._changed.update(range(self.slots))

    @property
    def has_changed(self) -> bool:
        """Whether a slot's memory is another than `told` has told. Of a model that computes whole texts none is of use
        to anybody."""
        return bool(self._changed) and self.texts != "whole"

    def told(self, reusable: Reusable) -> dict[int, tuple[str, ...]]:
        """Of the slots whose memory is another since the call before: the digests of the prompt that they hold, as far
        as another request that has them could build on it. Of a prompt that is being computed, what it began with."""
        running = {entry.slot: entry for entry in self._seated.values() if entry.begun}
        found = {}
        for slot in sorted(self._changed):
            if (entry := running.get(slot)) is None:
                found[slot] = self._memories.told(slot, reusable)
            else:
                found[slot] = () if self.forgets else entry.origin.digests[: entry.origin.covered(entry.computed)]
        self._changed.clear()
        return found

    def _take_turns(self, ready: list[Entry]) -> list[Entry]:
        """Where a step embeds, llama.cpp makes an output of each of its tokens, and has room for few: texts to embed
        and prompts go into steps of their own, in turn."""
        prompts = any(entry.next > 1 for entry in ready if not entry.embeds)
        if not prompts or not any(entry.embeds for entry in ready):
            return ready
        embeds, self._embeds_next = self._embeds_next, not self._embeds_next
        return [entry for entry in ready if entry.embeds == embeds or (not entry.embeds and entry.next == 1)]

    def _texts(self, ready: list[Entry]) -> list[tuple[Entry, int]]:
        missing = [entry.missing for entry in ready]
        shares = texts.whole(missing) if self.texts == "whole" else texts.last(missing, self.n_batch)
        return [(entry, share) for entry, share in zip(ready, shares, strict=True) if share]

    def _seat(self) -> None:
        taken = {entry.slot for entry in self._seated.values()}
        free = [slot for slot in range(self.slots) if slot not in taken]
        while free and self._queued:
            entry = self._queued.popleft()
            tokens = entry.tokens if entry.reuse else ()
            entry.slot = self._memories.seat(tokens, free, self._running_tokens(entry.scales))
            free.remove(entry.slot)
            self._seated[entry.key] = entry

    def _begin(self, reusable: Reusable) -> Iterator[Move]:
        """Give those their slot's memory that were seated, unless somebody is about to compute what they need too."""
        copied: set[int] = set()  # slots of which `reusable` does not know yet what they are going to hold
        for entry in self._seated.values():
            if entry.begun or self._still_follows(entry):
                continue
            assert entry.slot is not None
            wanted = entry.tokens[:-1] if entry.reuse else []  # the last one is computed in any case, for its output
            sources = [slot for slot in range(self.slots) if slot != entry.slot and slot not in copied]
            running = self._running_tokens(entry.scales)
            move = self._memories.best(entry.key, entry.slot, sources, wanted, running, reusable)
            entry.follows = self._leader(entry, move.count) if self.shares and wanted else None
            if entry.follows is None:
                entry.begun, entry.computed = True, move.count
                self._changed.add(entry.slot)
                if move.source != move.slot:
                    copied.add(move.slot)
                yield move

    def _still_follows(self, entry: Entry) -> bool:
        if entry.follows is None:
            return False
        leader = self._seated.get(entry.follows[0])
        return leader is not None and leader.computed < entry.follows[1]

    def _leader(self, entry: Entry, count: int) -> tuple[str, int] | None:
        """Who has begun a prompt that will soon be of more use to `entry` than the `count` tokens there are."""
        prompts = {
            other.key: (other.tokens[: other.prompt], other.computed)
            for other in self._seated.values()
            if other.begun and other.computed < other.prompt and other.scales == entry.scales
        }
        return worth_waiting_for(entry.tokens[:-1], count, prompts)

    def _running_tokens(self, scales: tuple[float, ...]) -> dict[int, tuple[Sequence[int], int]]:
        """Slot to the tokens of who has begun in it, and how many of them are computed; to none where its memory was
        computed by adapters of other scales, and is of no use."""
        of_others = {slot: ((), 0) for slot in range(self.slots) if self._memories.scales(slot) != scales}
        return of_others | {
            entry.slot: (entry.tokens, entry.computed) if entry.scales == scales else ((), 0)
            for entry in self._seated.values()
            if entry.begun and entry.slot is not None
        }


def make_scheduler(engine: Engine, slots: int, queue: int) -> Scheduler:
    """slots, queue: of the worker. Where texts alone are computed, requests are counted before they come here, each of
    which has as many texts here as there are sequences."""
    info = engine.info
    if not info.use.pooling:
        return Scheduler(slots, queue, engine.n_batch, shares=info.can_share, forgets=info.forgets)
    seats = info.sequences or slots
    mode: Texts = "whole" if info.use.whole else "last" if info.pooling in ("last", "rank") else "each"
    waiting = (slots + queue) * seats
    return Scheduler(seats, waiting, engine.n_batch, shares=info.can_share, forgets=info.forgets, texts=mode)


def _divide(budget: int, prompts: Sequence[Entry]) -> list[tuple[Entry, int]]:
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


def _lay_out(shares: Sequence[tuple[Entry, int]], moves: tuple[Move, ...], *, each: bool = True) -> Plan:
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
    )
