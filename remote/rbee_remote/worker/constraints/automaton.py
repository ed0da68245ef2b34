"""A grammar as an automaton over characters, made deterministic as far as it is used.

Words: a place is a symbol in a rule; a node is a place and the node to go on with behind its rule, so that a chain of
nodes is a stack; a state is the set of nodes that the text so far can be at, each at a character, or at the end.
A class is a range of code points that no character of the grammar tells apart.

llama.cpp's own grammar sampler keeps the same stacks, but follows each of them through every token: where two of them
allow the same characters its time doubles with each, there is no end to a left-recursive rule that its check does not
see, and it ends the process over a state that is empty. Here a character's work has a limit, and equal stacks are one.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbee_remote.worker.constraints.gbnf import Grammar, GrammarError, Terminal

#: Nodes that one character can lead to.
MAX_BRANCHES = 5_000
#: Nodes, and entries of the table: some 60 MB, at 100 bytes and 4.
MAX_NODES = 200_000
MAX_ENTRIES = 8_000_000
#: Seconds for the rules' beginnings, and for all that one answer needs found out beyond them.
MAX_SECONDS = 1.0
MAX_ANSWER_SECONDS = 3.0

DEAD = 0  # the state that nothing leads out of
_UNKNOWN = -1
_END = 0  # the node behind the root: the text can end


@dataclass
class Patience:
    """Seconds that an answer may still take to find its way where no answer has been before."""

    left: float = MAX_ANSWER_SECONDS


class Automaton:
    """states are numbers; `start` is the first one."""

    def __init__(self, grammar: Grammar) -> None:
        """Raises GrammarError where a rule is left-recursive, has no beginning, or too many."""
        self._symbols: list[Terminal | int | None] = []  # by place; None behind the last symbol of an alternative
        self._beginnings = [[self._lay_out(sequence) for sequence in rule] for rule in grammar.rules]
        self._nodes: list[tuple[int, int]] = [(-1, -1)]
        self._node_numbers: dict[tuple[int, int], int] = {}
        self._states: list[tuple[int, ...]] = [()]
        self._state_numbers: dict[tuple[int, ...], int] = {(): DEAD}
        self._cuts = _cuts(grammar)
        self._table = np.full((16, len(self._cuts) + 1), _UNKNOWN, np.int32)
        self._table[DEAD] = DEAD
        self._check(grammar)
        self.start = self._state(self._call(grammar.root, _END))

    @property
    def worn(self) -> bool:
        """Whether it has grown so much that a new request should rather begin with a fresh one."""
        return len(self._nodes) > MAX_NODES // 2 or self._table.size > MAX_ENTRIES // 2

    def can_end(self, state: int) -> bool:
        return _END in self._states[state]

    def class_of(self, code_point: int) -> int:
        return bisect.bisect_right(self._cuts, code_point)

    def classes_of(self, code_points: NDArray[np.uint32]) -> NDArray[np.intp]:
        return np.searchsorted(np.array(self._cuts, np.uint32), code_points, side="right")

    def step(self, state: int, class_: int) -> int:
        """The state after a character of this class. Raises GrammarError where the grammar is too ambiguous."""
        known = int(self._table[state, class_])
        if known != _UNKNOWN:
            return known
        code_point = self._cuts[class_ - 1] if class_ else 0
        after: set[int] = set()
        for number in self._states[state]:
            place, below = self._nodes[number]
            symbol = self._symbols[place]
            if isinstance(symbol, Terminal) and number != _END and symbol.matches(code_point):
                after.add(self._node(place + 1, below))
        result = self._state(after)
        self._table[state, class_] = result
        return result

    def steps(self, states: NDArray[np.int32], classes: NDArray[np.intp], patience: Patience) -> NDArray[np.int32]:
        """`step` for many at once. Raises GrammarError as it does, and where patience ends."""
        after = self._table[states, classes]
        unknown = after == _UNKNOWN
        if unknown.any():
            started = time.monotonic()
            width = self._table.shape[1]
            for pair in np.unique(states[unknown].astype(np.int64) * width + classes[unknown]):
                self.step(int(pair) // width, int(pair) % width)
                if time.monotonic() - started > patience.left:
                    raise GrammarError("the grammar takes too long to follow; it may be too ambiguous")
            patience.left -= time.monotonic() - started
            after = self._table[states, classes]
        return after

    def _lay_out(self, sequence: Iterable[Terminal | int]) -> int:
        first = len(self._symbols)
        self._symbols += [*sequence, None]
        return first

    def _check(self, grammar: Grammar) -> None:
        """Each rule on its own: what is wrong with one that the text has not come to yet is known at once."""
        deadline = time.monotonic() + MAX_SECONDS
        for rule, name in enumerate(grammar.names):
            shown = name.partition("_")[0]
            try:
                found = self._expand(self._call(rule, _END))
            except GrammarError as error:
                raise GrammarError(f"the rule {shown} is left-recursive, or has too many beginnings") from error
            if not found:
                raise GrammarError(f"the rule {shown} never ends: it refers only to itself")
            if time.monotonic() > deadline:
                raise GrammarError("the grammar has too many beginnings of rules")

    def _call(self, rule: int, below: int) -> list[int]:
        return [self._node(place, below) for place in self._beginnings[rule]]

    def _node(self, place: int, below: int) -> int:
        if self._symbols[place] is None:
            return below
        known = self._node_numbers.get((place, below))
        if known is not None:
            return known
        if len(self._nodes) >= MAX_NODES:
            raise GrammarError("the grammar has grown too large for its text")
        self._node_numbers[place, below] = len(self._nodes)
        self._nodes.append((place, below))
        return len(self._nodes) - 1

    def _expand(self, nodes: Iterable[int]) -> list[int]:
        """The nodes at a character, or the end, that these lead to through references."""
        todo = list(nodes)
        seen = set(todo)
        found: list[int] = []
        while todo:
            if len(seen) > MAX_BRANCHES:
                raise GrammarError("the grammar is too ambiguous: there are too many ways to go on")
            number = todo.pop()
            place, below = self._nodes[number]
            rule = self._symbols[place] if number != _END else None
            if not isinstance(rule, int):
                found.append(number)
                continue
            for node in self._call(rule, self._node(place + 1, below)):
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        return found

    def _state(self, nodes: Iterable[int]) -> int:
        members = tuple(sorted(self._expand(nodes)))
        known = self._state_numbers.get(members)
        if known is not None:
            return known
        number = len(self._states)
        if number == len(self._table):
            if self._table.size * 2 > MAX_ENTRIES:
                raise GrammarError("the grammar has grown too large for its text")
            self._table = np.concatenate([self._table, np.full_like(self._table, _UNKNOWN)])
        self._states.append(members)
        self._state_numbers[members] = number
        return number


def _cuts(grammar: Grammar) -> list[int]:
    """The first code point of every class but the first."""
    found: set[int] = set()
    for sequence in (sequence for rule in grammar.rules for sequence in rule):
        for symbol in sequence:
            if isinstance(symbol, Terminal):
                for first, last in symbol.ranges:
                    found |= {first, last + 1}
    return sorted(cut for cut in found if 0 < cut <= 0x10FFFF)
