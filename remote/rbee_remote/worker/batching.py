"""Which tokens the next step computes: continuous batching over a fixed number of slots. Pure.

Always true
- A request is queued or seated, never both; a seat is a slot from 0 to slots - 1, held by one request.
- Requests take seats in the order in which they came, and only `plan` seats them.
- `computed` tokens of a request are in the engine's memory, in positions 0 to computed - 1. Only `commit` and
  `rewind` move it, so a step that failed or was interrupted is simply planned again.
- A request whose tokens are all computed waits for `append`. One token missing is decoding, more is prefill: there
  is no other difference, and both share a step. Decoding goes first, so a long prompt never delays a token by more
  than one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rbee_remote.worker.interface import BatchToken


class QueueFull(Exception):
    """Every slot and every place in the queue is taken."""


@dataclass(slots=True)
class Entry:
    """A request's tokens, the prompt first; `slot` None while it is queued."""

    key: str
    tokens: list[int]
    slot: int | None = None
    computed: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a plan that belongs to one request: `count` tokens from position `start` in `slot`.

    row: index in the batch of the logits to sample from, None while the prompt is not whole.
    """

    key: str
    slot: int
    start: int
    count: int
    row: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. seated: the requests that got their slot in it, in order, as key and slot; the step may have no room
    for their tokens yet."""

    batch: tuple[BatchToken, ...] = ()
    spans: tuple[Span, ...] = ()
    seated: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Scheduler:
    """slots: requests computed at once. queue: requests that may wait. n_batch: tokens of a step at most."""

    slots: int
    queue: int
    n_batch: int
    _queued: deque[Entry] = field(default_factory=deque)
    _seated: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.slots <= self.n_batch:
            raise ValueError(f"slots must be from 1 to n_batch ({self.n_batch}), got {self.slots}")

    @property
    def running(self) -> int:
        return len(self._seated)

    @property
    def waiting(self) -> int:
        return len(self._queued)

    def entry(self, key: str) -> Entry | None:
        """The request of that key, queued or seated."""
        return self._seated.get(key) or next((entry for entry in self._queued if entry.key == key), None)

    def submit(self, key: str, prompt: Sequence[int]) -> None:
        """Queue a request. Raises QueueFull, ValueError for an empty prompt or a key that is in use."""
        if not prompt or self.entry(key):
            raise ValueError("a request needs a prompt and a key of its own")
        if len(self._seated) + len(self._queued) >= self.slots + self.queue:
            raise QueueFull
        self._queued.append(Entry(key, list(prompt)))

    def remove(self, key: str) -> int | None:
        """Take a request out wherever it is; the slot that it leaves, None if it had none."""
        entry = self._seated.pop(key, None)
        if entry is None:
            self._queued = deque(entry for entry in self._queued if entry.key != key)
            return None
        return entry.slot

    def plan(self) -> Plan:
        """Seat who can be seated, then fill the step: one token of each that decodes, prompts with what is left."""
        seated = self._seat()
        budget = self.n_batch
        shares: list[tuple[Entry, int]] = []
        by_need = sorted(self._seated.values(), key=lambda entry: len(entry.tokens) - entry.computed > 1)
        for entry in by_need:
            share = min(budget, len(entry.tokens) - entry.computed)
            if share > 0:
                shares.append((entry, share))
                budget -= share
        return _lay_out(shares, seated)

    def commit(self, plan: Plan) -> None:
        """The engine computed `plan`. Requests removed meanwhile are passed over."""
        for span in plan.spans:
            entry = self._seated.get(span.key)
            if entry is not None:
                entry.computed = span.start + span.count

    def append(self, key: str, token: int) -> None:
        """The token sampled after everything of `key` was computed."""
        entry = self._seated[key]
        if entry.computed != len(entry.tokens):
            raise ValueError("a token was sampled before its context was computed")
        entry.tokens.append(token)

    def rewind(self, key: str) -> None:
        """The engine lost what it had computed for `key`: all of it is planned again."""
        self._seated[key].computed = 0

    def _seat(self) -> tuple[tuple[str, int], ...]:
        taken = {entry.slot for entry in self._seated.values()}
        seated = []
        for slot in range(self.slots):
            if slot in taken or not self._queued:
                continue
            entry = self._queued.popleft()
            entry.slot = slot
            self._seated[entry.key] = entry
            seated.append((entry.key, slot))
        return tuple(seated)


def _lay_out(shares: Sequence[tuple[Entry, int]], seated: tuple[tuple[str, int], ...]) -> Plan:
    batch: list[BatchToken] = []
    spans: list[Span] = []
    for entry, count in shares:
        assert entry.slot is not None
        start, end = entry.computed, entry.computed + count
        whole = end == len(entry.tokens)
        batch.extend(
            BatchToken(entry.tokens[pos], pos, entry.slot, whole and pos == end - 1) for pos in range(start, end)
        )
        spans.append(Span(entry.key, entry.slot, start, count, len(batch) - 1 if whole else None))
    return Plan(tuple(batch), tuple(spans), seated)
