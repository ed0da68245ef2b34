"""Which tokens a grammar allows next.

A token is allowed when its characters are; one that ends inside a character, when some way to complete it is; one
that ends the answer, when the text can end here. Tokens without text are never allowed: the grammar could not see them.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rbee_remote.worker.constraints.automaton import DEAD, Automaton, Patience


class Vocabulary:
    """A model's tokens by their characters, for all of them to be followed at once.

    pieces: the bytes of each token. ends: the tokens that end an answer.
    """

    def __init__(self, pieces: Sequence[bytes], ends: Sequence[int]) -> None:
        self.pieces = pieces
        self.ends = frozenset(ends)
        texts: list[tuple[int, str]] = []
        self._tails: list[int] = []  # begin with a character, and end inside of one
        self._heads: list[int] = []  # begin inside a character
        for token, piece in enumerate(pieces):
            if not piece or token in self.ends:
                continue
            try:
                texts.append((token, piece.decode()))
            except UnicodeDecodeError:
                (self._heads if 0x80 <= piece[0] < 0xC0 else self._tails).append(token)
        texts.sort(key=lambda item: -len(item[1]))
        self._whole = np.array([token for token, _ in texts], np.intp)
        flat = np.frombuffer("".join(text for _, text in texts).encode("utf-32-le"), np.uint32)
        #: The characters that occur. `_columns` refers to them: column k has the k-th of every token that is so long,
        #: the longest token first.
        self.points, indices = np.unique(flat, return_inverse=True)
        lengths = np.array([len(text) for _, text in texts], np.intp)
        first = np.cumsum(lengths) - lengths
        self._columns = [indices[first[lengths > k] + k] for k in range(lengths.max(initial=0))]

    def allowed(self, matcher: Matcher) -> NDArray[np.bool_]:
        """By token. Raises GrammarError where the grammar is too ambiguous to tell."""
        mask = np.zeros(len(self.pieces), np.bool_)
        if matcher.pending:
            candidates = self._heads
        else:
            mask[self._whole] = self._follow(matcher)
            candidates = self._tails
        for token in candidates:
            mask[token] = matcher.allows(token)
        mask[list(self.ends)] = matcher.can_end
        return mask

    def _follow(self, matcher: Matcher) -> NDArray[np.bool_]:
        states = np.full(len(self._whole), matcher.state, np.int32)
        alive = np.arange(len(states))
        for column in self._columns:
            alive = alive[: np.searchsorted(alive, len(column))]
            if not len(alive):
                break
            states[alive] = after = matcher.automaton.steps(
                states[alive], matcher.classes[column[alive]], matcher.patience
            )
            alive = alive[after != DEAD]
        alive_at_end: NDArray[np.bool_] = states != DEAD
        return alive_at_end


class Matcher:
    """One answer's way through a grammar. state: where it is. pending: the bytes of a character that is not whole."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton = automaton
        self.vocabulary = vocabulary
        self.classes = automaton.classes_of(vocabulary.points)
        self.state = automaton.start
        self.pending = b""
        self.patience = Patience()

    @property
    def can_end(self) -> bool:
        return not self.pending and self.automaton.can_end(self.state)

    def allows(self, token: int) -> bool:
        if token in self.vocabulary.ends:
            return self.can_end
        return self._advance(token) is not None

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed; one that ends the answer changes nothing."""
        if token not in self.vocabulary.ends:
            after = self._advance(token)
            assert after is not None
            self.state, self.pending = after

    def _advance(self, token: int) -> tuple[int, bytes] | None:
        piece = self.pending + self.vocabulary.pieces[token]
        if not self.vocabulary.pieces[token]:
            return None
        try:
            text, used = codecs.utf_8_decode(piece, "strict", False)
        except UnicodeDecodeError:
            return None
        state = self.state
        for character in text:
            state = self.automaton.step(state, self.automaton.class_of(ord(character)))
            if state == DEAD:
                return None
        pending = piece[used:]
        return (state, pending) if not pending or self._completes(state, pending) else None

    def _completes(self, state: int, pending: bytes) -> bool:
        """Whether some character that begins with these bytes can follow."""
        first, last = _completions(pending)
        if first >= 0xD800 and last <= 0xDFFF:  # surrogates: Python's decoder only says so when they are whole
            return False
        classes = range(self.automaton.class_of(first), self.automaton.class_of(last) + 1)
        return any(self.automaton.step(state, class_) != DEAD for class_ in classes)


def _completions(pending: bytes) -> tuple[int, int]:
    """The lowest and highest code point whose UTF-8 begins with these bytes, which are the beginning of one."""
    missing = (2 if pending[0] < 0xE0 else 3 if pending[0] < 0xF0 else 4) - len(pending)
    value = pending[0] & (0x1F if pending[0] < 0xE0 else 0x0F if pending[0] < 0xF0 else 0x07)
    for byte in pending[1:]:
        value = value << 6 | byte & 0x3F
    lowest = 0x80 if pending[0] < 0xE0 else 0x800 if pending[0] < 0xF0 else 0x10000
    first = value << 6 * missing
    return max(first, lowest), min(first + (1 << 6 * missing) - 1, 0x10FFFF)
