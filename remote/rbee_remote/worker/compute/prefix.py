"""What the slots' memory holds, and what of it a request can build on. Pure.

A prompt that begins like one that was computed needs only the rest: the next turn of a chat takes the slot that holds
the turns before, and a system prompt that many requests have in common is computed once and copied. What is in the way
goes by least recent use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rbee_remote.protocol.prompt_digest import GAP

#: Tokens from which a copy from another slot pays. It takes as long as computing some four to eight tokens of a small
#: model on a CPU (7 to 20 ms of memory traffic for 94 MB of cache), and less of a larger one.
LEAST_COPIED = 16

Running = Mapping[int, tuple[Sequence[int], int]]
#: How many of the first tokens in a slot's memory can be built on: `Engine.reusable`.
Reusable = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request's tokens come from: the digests of its body's prompt (`prompt_digests`), empty where nobody made
    them, and how many tokens the prompt has. scales: of the adapters that computed it."""

    digests: tuple[str, ...] = ()
    tokens: int = 0
    scales: tuple[float, ...] = ()

    def covered(self, computed: int) -> int:
        """How many of the digests are about the first `computed` tokens; all of a prompt's text is taken to have as
        many tokens for each byte."""
        return len(self.digests) * min(computed, self.tokens) // self.tokens if self.digests else 0

    def needed(self, count: int) -> int:
        """How many tokens the first `count` digests are about."""
        return -(-count * self.tokens // len(self.digests))


@dataclass(frozen=True, slots=True)
class Move:
    """The memory of `slot` becomes the first `count` tokens of that of `source`, and belongs to request `key`.

    Of equal slots, what lies behind is dropped.
    """

    key: str
    source: int
    slot: int
    count: int


UNKNOWN = Origin()


class Memories:
    """The tokens that ended requests left in each slot, and where they came from. `running` tells of the slots whose
    requests have begun: their tokens, and how many of these are computed."""

    def __init__(self, slots: int) -> None:
        self._left: list[Sequence[int]] = [()] * slots
        self._origins = [UNKNOWN] * slots
        self._used = [0] * slots
        self._clock = 0

    def leave(self, slot: int, tokens: Sequence[int], origin: Origin) -> None:
        """A request ended and left `tokens` in its slot."""
        self._clock += 1
        self._left[slot] = tokens
        self._origins[slot] = origin
        self._used[slot] = self._clock

    def scales(self, slot: int) -> tuple[float, ...]:
        """Of the adapters by which what was left in the slot was computed."""
        return self._origins[slot].scales

    def seat(self, tokens: Sequence[int], free: Sequence[int], running: Running) -> int:
        """The slot of `free` for a request: the one that it continues, else an empty one, else the one whose use lies
        longest back."""
        source, common = self._closest(tokens, range(len(self._left)), running)
        if source in free and 2 * common >= len(self._left[source]) > 0:
            return source
        return min(free, key=lambda slot: (len(self._left[slot]) > 0, self._used[slot]))

    def best(
        self,
        key: str,
        slot: int,
        sources: Iterable[int],
        tokens: Sequence[int],
        running: Running,
        reusable: Callable[[int, int], int],
    ) -> Move:
        """The largest start of `tokens` that is in the memory of `slot`, or to be copied there from one of
        `sources`."""
        own = reusable(slot, common) if (common := self._common(slot, tokens, running)) else 0
        source, common = self._closest(tokens, sources, running)
        copied = reusable(source, common) if common >= LEAST_COPIED else 0
        if copied >= own + LEAST_COPIED:
            return Move(key, source, slot, copied)
        return Move(key, slot, slot, own)

    def told(self, slot: int, reusable: Reusable) -> tuple[str, ...]:
        """The digests of what was left in the slot, with a GAP for each at which no other prompt could build on it."""
        origin, left = self._origins[slot], len(self._left[slot])
        covered = origin.covered(left)
        if not covered or reusable(slot, origin.needed(1)):
            return origin.digests[:covered]
        # What is lost is the start. All of it can be built on in any case, by a prompt that goes on with the answer.
        lost = bisect_left(range(1, covered), 1, key=lambda count: int(reusable(slot, origin.needed(count)) > 0))
        return (*(GAP,) * lost, *origin.digests[lost:covered])

    def _closest(self, tokens: Sequence[int], slots: Iterable[int], running: Running) -> tuple[int, int]:
        """The slot that has most in common with `tokens`, and how much."""
        common = [(self._common(slot, tokens, running), self._used[slot], -slot) for slot in slots]
        most, _, negated = max(common, default=(0, 0, 0))
        return -negated, most

    def _common(self, slot: int, tokens: Sequence[int], running: Running) -> int:
        held, computed = running.get(slot) or (self._left[slot], len(self._left[slot]))
        return min(common_prefix(tokens, held), computed)


def worth_waiting_for(
    tokens: Sequence[int], count: int, prompts: Mapping[str, tuple[Sequence[int], int]]
) -> tuple[str, int] | None:
    """Of the `prompts` that are being computed, with how much of them is, the one that has most in common with
    `tokens`, and how much; None where that is no more than the `count` tokens that there are already."""
    coming = [
        (common, key)
        for key, (prompt, computed) in prompts.items()
        if computed < (common := common_prefix(tokens, prompt))
    ]
    common, key = max(coming, default=(0, ""))
    return (key, common) if common >= count + LEAST_COPIED else None


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    return next(
        (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
