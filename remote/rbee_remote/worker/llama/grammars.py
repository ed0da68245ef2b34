"""The grammars of a model's requests, as automata over its tokens."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling
from rbee_remote.worker.constraints import gbnf
from rbee_remote.worker.constraints.automaton import Automaton
from rbee_remote.worker.constraints.matcher import Matcher, Vocabulary
from rbee_remote.worker.llama.schema import to_grammar

#: Grammars that are kept, with what is known of them, for the next request with the same one.
KEPT = 4


class Grammars:
    """piece: the bytes of a token, empty for a control token."""

    def __init__(self, vocab: llama.llama_vocab_p, piece: Callable[[int], bytes]) -> None:
        self._vocab = vocab
        self._piece = piece
        self._automata: OrderedDict[str, Automaton] = OrderedDict()

    def matcher(self, sampling: Sampling) -> Matcher | None:
        """None where the request has no grammar. Raises RemoteError USAGE naming the field that cannot be used."""
        if not sampling.grammar and sampling.json_schema is None:
            return None
        if not self._vocabulary.ends:
            raise _usage(sampling, "cannot be used with this model, which has no token that ends an answer")
        text = sampling.grammar or to_grammar(sampling.json_schema or {})
        try:
            return Matcher(self._automaton(text), self._vocabulary)
        except gbnf.GrammarError as error:
            raise refused(sampling, error) from error

    def _automaton(self, text: str) -> Automaton:
        known = self._automata.pop(text, None)
        automaton = Automaton(gbnf.parse(text)) if known is None or known.worn else known
        self._automata[text] = automaton
        while len(self._automata) > KEPT:
            self._automata.popitem(last=False)
        return automaton

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        tokens = range(llama.llama_vocab_n_tokens(self._vocab))
        ends = [token for token in tokens if llama.llama_vocab_is_eog(self._vocab, token)]
        return Vocabulary([self._piece(token) for token in tokens], ends)


def refused(sampling: Sampling, error: gbnf.GrammarError) -> RemoteError:
    """What the request is told of a grammar that cannot be used, or no longer."""
    return _usage(sampling, f"cannot be used: {error}")


def _usage(sampling: Sampling, what: str) -> RemoteError:
    field = "grammar" if sampling.grammar else "json_schema"
    return RemoteError(ErrorCode.USAGE, f"{field} {what}", details={"field": field})
