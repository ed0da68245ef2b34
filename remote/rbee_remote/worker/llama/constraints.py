"""Grammars over a model's tokens, by llguidance.

Rules
- The tokenizer is made for the first request that needs it: it takes 0.7 s for 49,152 tokens, which a load, and whoever
  asks for free text, shall not wait for.
- Compiling happens on whichever thread asks, one grammar at a time, and never while the engine is being closed: the
  tokenizer reads llama.cpp's vocabulary.
- A matcher belongs to one request, and to the engine's thread once that has begun.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_cpp import llama_cpp as llama

from rbee_remote.constraints import library
from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.worker.engine.interface import Constraint

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

#: Grammars that are kept, with what their lexers have learned, for the next request with the same one.
KEPT = 8
#: Seconds that following a grammar may take for each token of an answer, and what may be overdrawn, for a first mask or
#: a rare one. llguidance bounds a step, not the answer: one whose grammar is very ambiguous costs more with each token.
STEP_S = 0.01
PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """`matcher` stands at the beginning and is only ever copied."""

    grammar: str
    matcher: LLMatcher


class Constraints:
    """Of one model."""

    def __init__(self, vocab: llama.llama_vocab_p) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._closed = False
        self._kept: OrderedDict[str, Compiled] = OrderedDict()

    def close(self) -> None:
        """Returns once nobody compiles any more."""
        with self._lock:
            self._closed = True

    def compile(self, grammar: str) -> Compiled:
        """As `Engine.constraint`."""
        library.require()
        with self._lock:
            if self._closed:
                raise RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
            found = self._kept.pop(grammar, None) or self._compile(grammar)
            self._kept[grammar] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found

    def matcher(self, constraint: Constraint) -> Matcher:
        """For one request."""
        assert isinstance(constraint, Compiled)
        return Matcher(constraint.matcher.deep_copy(), self._ends, lambda: self._forget(constraint))

    def _compile(self, grammar: str) -> Compiled:
        try:
            return Compiled(grammar, library.make_matcher(self._tokenizer, grammar))
        except library.GrammarError as error:
            raise _usage(f"the constraint cannot be used: {error}") from error

    def _forget(self, constraint: Compiled) -> None:
        """Its lexer has grown too large, for the next request, too."""
        with self._lock:
            self._kept.pop(constraint.grammar, None)

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance.llamacpp import lltokenizer_from_vocab

        if not self._ends:
            raise _usage("the model has no token that ends an answer, so the answer's form cannot be constrained")
        return lltokenizer_from_vocab(self._vocab, eos_token=sorted(self._ends))

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        tokens = range(llama.llama_vocab_n_tokens(self._vocab))
        return frozenset(token for token in tokens if llama.llama_vocab_is_eog(self._vocab, token))


class Matcher:
    """Where one answer stands in its grammar. ends: tokens that end an answer. on_failure: called when it cannot be
    followed any more."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], on_failure: Callable[[], None]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._on_failure = on_failure
        self._left_s = PATIENCE_S

    def take(self, token: int) -> bool:
        """False where it is not allowed, and nothing has changed. Raises RemoteError USAGE where nobody can tell."""
        begun = time.perf_counter()
        taken = self._matcher.try_consume_tokens([token]) == 1
        self._check(begun)
        return taken or (token in self._ends and self._matcher.is_stopped())  # where nothing else can follow

    def accept(self, token: int) -> None:
        """Raises RemoteError USAGE where it is not allowed."""
        if not self.take(token):
            raise _usage(f"the constraint does not allow token {token} here")

    def allowed(self) -> NDArray[np.intp]:
        """The tokens that may come next, at least one; those that end an answer, once it is complete. Raises
        RemoteError USAGE."""
        import numpy as np

        begun = time.perf_counter()
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(begun)
        tokens = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if not len(tokens):
            raise _usage("the constraint leaves no way to go on: no text that begins like this fits it")
        return tokens

    def _check(self, begun: float) -> None:
        self._left_s = min(PATIENCE_S, self._left_s + STEP_S + begun - time.perf_counter())
        if self._left_s < 0:
            raise _usage("the constraint takes too long to follow: its grammar is too ambiguous")
        if self._matcher.is_error():
            self._on_failure()
            raise _usage(f"the constraint cannot be followed any further: {library.reason(self._matcher.get_error())}")


def _usage(message: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, message)
