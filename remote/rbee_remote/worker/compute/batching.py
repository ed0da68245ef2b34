"""Which tokens the next step computes: continuous batching over a fixed number of slots. Pure.

Always true
- A request is queued or seated, never both; a seat is a slot from 0 to slots - 1, held by one request.
- Requests take seats in the order in which they came, and only `plan` seats them. Those of the background come after
  all others, and one of them gives up its seat where another request would have to wait for one: it is queued again
  with what it has, in its old place, and its tokens are computed again when it has a seat.
- While a prompt of another request is computed, the background computes nothing; beside its tokens, little of prompts.
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

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rbee_remote.worker.compute import texts
from rbee_remote.worker.compute.plans import Entry, Plan, divide, lay_out
from rbee_remote.worker.compute.prefill import LEAST
from rbee_remote.worker.compute.prefix import Memories, Move, Origin, Reusable, worth_waiting_for
from rbee_remote.worker.compute.turns import Turns
from rbee_remote.worker.engine.interface import Engine

#: How texts to embed are computed: beside requests that generate, each token with an output of its own; or, where
#: nobody generates, as `texts` says.
Texts = Literal["each", "whole", "last"]


class QueueFull(Exception):
    """Every slot and every place in the queue is taken."""


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
    _queued: list[Entry] = field(default_factory=list)  # as they are to be seated
    _numbers: Iterator[int] = field(default_factory=itertools.count)
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

    @property
    def background(self) -> int:
        """Of those that run or wait, how many give way."""
        return sum(entry.background for entry in (*self._seated.values(), *self._queued))

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
        background: bool = False,
        exact: bool = False,
    ) -> None:
        """Queue a request. at_once: None for all of its tokens. digests and scales: as in `Origin`. background, exact:
        as in `Entry`. Raises QueueFull, for which those that would give way to it do not count; ValueError for an empty
        prompt or a key that is in use."""
        if not prompt or self.entry(key):
            raise ValueError("a request needs a prompt and a key of its own")
        others = len(self._seated) + len(self._queued)
        if others - (0 if background else self.background) >= self.slots + self.queue:
            raise QueueFull
        reuse = reuse and (self.texts == "last" or (self.texts == "each" and not embeds))
        entry = Entry(key, list(prompt), reuse, embeds, prompt=len(prompt))
        if at_once is not None:
            entry.at_once, entry.prompt = at_once, min(at_once, len(prompt))
        entry.origin = Origin(digests, entry.prompt, scales)
        entry.background, entry.exact, entry.number = background, exact, next(self._numbers)
        self._enqueue(entry)

    def remove(self, key: str) -> int | None:
        """Take a request out wherever it is; the slot that it leaves, None if it had none."""
        entry = self._seated.pop(key, None)
        if entry is None:
            self._queued = [entry for entry in self._queued if entry.key != key]
            return None
        return self._leave(entry)

    def _leave(self, entry: Entry) -> int:
        """The slot that it leaves, with what its memory holds."""
        assert entry.slot is not None
        if entry.begun:
            self._memories.leave(entry.slot, entry.tokens[: entry.computed], entry.origin)
            self._changed.add(entry.slot)
        return entry.slot

    def _enqueue(self, entry: Entry) -> None:
        bisect.insort(self._queued, entry, key=lambda each: (each.background, each.number))

    def _give_way(self) -> Iterator[tuple[str, int]]:
        """Unseat as many of the background as others wait for a seat: those that have least to lose, and latest came.
        Texts to embed are over soon."""
        free = self.slots - len(self._seated)
        wait = sum(not entry.background for entry in self._queued)
        able = [entry for entry in self._seated.values() if entry.background and not entry.embeds]
        able.sort(key=lambda entry: (entry.computed, -entry.number))
        for entry in able[: max(0, wait - free)]:
            del self._seated[entry.key]
            yield entry.key, self._leave(entry)
            if entry.exact:
                entry.at_once = min(entry.at_once, entry.prompt)
            entry.slot, entry.begun, entry.computed, entry.follows = None, False, 0, None
            entry.unseated = True
            self._enqueue(entry)

    def plan(self, *, prefill: int | None = None, reusable: Reusable = lambda _, count: count) -> Plan:
        """Seat and begin who can be, then fill the step: one token of each that decodes, prompts with what is left.

        prefill: prompt tokens of the step at most while somebody decodes, None for all that fit.
        """
        unseated = tuple(self._give_way())
        self._seat()
        moves = tuple(self._begin(reusable))
        begun = [entry for entry in self._seated.values() if entry.begun]
        if any(entry.next > 1 for entry in begun if not entry.background):
            begun = [entry for entry in begun if not entry.background]
        ready = self._turns.take(begun, lambda entry: entry.scales)
        if self.texts != "each":
            return lay_out(self._texts(ready), moves, unseated, each=self.texts == "whole")
        ready = self._take_turns(ready)
        decoding = [(entry, 1) for entry in ready if entry.next == 1]
        prompts = [entry for entry in ready if entry.next > 1]
        budget = self.n_batch - len(decoding)
        if prefill is not None and any(entry.next == 1 for entry in begun):
            budget = min(budget, prefill)
            if any(entry.next == 1 and not entry.background for entry in begun) and prompts and prompts[0].background:
                budget = min(budget, LEAST)
        return lay_out(decoding + divide(budget, prompts), moves, unseated)

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
            entry = self._queued.pop(0)
            tokens = entry.tokens if entry.reuse else ()
            entry.slot = self._memories.seat(tokens, free, self._running_tokens(entry.scales))
            free.remove(entry.slot)
            entry.unseated = False
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
            if entry.background or not other.background
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
