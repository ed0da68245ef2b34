"""An engine without a model, for tests of everything around one: what it answers is a function of the prompt.

A token is a byte of UTF-8, or one of the model's `special_tokens`, which stand in what it answers as their texts; BEGIN
stands before each prompt and END ends each answer. The engine keeps books like
llama.cpp does and fails loudly on what llama.cpp would answer with garbage: a gap in a sequence's positions, a
prompt that is not what stands in the memory, a sample from a row without logits, a generated token that was never fed
back.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbee_remote.protocol import Sampling, WorkerConfig
from rbee_remote.worker.engine.interface import (
    BatchToken,
    Constraint,
    Engine,
    LoadAborted,
    LoadedModel,
    LoadEngine,
    Progress,
    Sampled,
    Sampler,
)

BEGIN, END = 256, 257

INFO = LoadedModel(
    n_ctx_train=8192,
    n_vocab=258,
    chat_template="{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}",
    bos="<begin>",
    eos="<end>",
    adds_bos=True,
    adds_eos=False,
    backend="cpu",
    device="cpu",
)


@dataclass(frozen=True)
class ScriptedConstraint:
    """Holds nobody to anything."""

    grammar: str


@dataclass(frozen=True)
class ScriptedSampler:
    """state: of the sequence that it was taken from."""

    state: tuple[Any, ...]

    def close(self) -> None:
        """There is nothing to free."""


class ScriptedEngine:
    """answer: the bytes generated for a prompt. before_step: called with the number of the step, from 1, before it
    is computed; what it raises is the engine's failure. can_forget: whether a part of a sequence can be dropped.
    steps, computed: how many steps and tokens of them there were. constraints: what each sequence was started with,
    None for free text; accepted: the tokens that it was given, of which those that stand in the script are taken as
    such."""

    def __init__(
        self,
        answer: Callable[[str], bytes],
        *,
        n_batch: int = 16,
        before_step: Callable[[int], None] = lambda _: None,
        can_forget: bool = True,
        info: LoadedModel = INFO,
    ) -> None:
        self.info = info
        self.n_batch = n_batch
        self.threads = 0
        self.steps = 0
        self.computed = 0
        self.constraints: dict[int, Constraint | None] = {}
        self.accepted: dict[int, list[int]] = {}
        self.closed = False
        self._answer = answer
        self._before_step = before_step
        self._can_forget = can_forget
        self._interrupted = threading.Event()
        self._memory: dict[int, list[int]] = {}
        self._texts = {token: text for text, token in info.special_tokens.items()}
        self._answers: dict[int, tuple[list[int], list[int]]] = {}  # seq to a prompt and what follows it
        self._said: dict[int, list[int]] = {}  # seq to all that counts as generated
        self._done: dict[int, int] = {}  # seq to how far it is in the script
        self._rows: dict[int, tuple[int, int]] = {}  # index in the batch to the token's sequence and the token
        self._embeddings = False

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert parse_special or not self._texts, "control tokens as text are not scripted"
        assert not self.closed
        return [BEGIN] * add_special + self._tokens(text.encode("utf-8"))

    def piece(self, token: int) -> bytes:
        if self._texts.get(token) in self.info.user_defined:
            return self._texts[token].encode()
        return bytes([token]) if token < BEGIN else b""

    def _tokens(self, data: bytes) -> list[int]:
        if not self._texts:
            return list(data)
        pattern = "|".join(map(re.escape, self.info.special_tokens)).encode()
        found: list[int] = []
        for part in re.split(b"(" + pattern + b")", data):
            token = self.info.special_tokens.get(part.decode(errors="replace"))
            found += list(part) if token is None else [token]
        return found

    def _text(self, tokens: Sequence[int]) -> str:
        return b"".join(bytes([t]) if t < BEGIN else self._texts.get(t, "").encode() for t in tokens).decode()

    def is_end(self, token: int) -> bool:
        return token == END

    def constraint(self, grammar: str) -> Constraint:
        assert not self.closed
        return ScriptedConstraint(grammar)

    def start(
        self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        assert sampling.seed in (None, seed)
        assert seq not in self._answers
        self.constraints[seq] = constraint
        self.accepted[seq] = []
        self._answers[seq] = list(prompt), self._tokens(self._answer(self._text(prompt[1:])))
        self._said[seq], self._done[seq] = [], 0

    def decode(self, batch: Sequence[BatchToken], *, embeddings: bool = False, scales: Sequence[float] = ()) -> bool:
        assert 0 < len(batch) <= self.n_batch
        assert not embeddings or all(token.output for token in batch)  # llama.cpp makes all of them
        self.steps += 1
        self._before_step(self.steps)
        self._rows = {}
        for row, (token, pos, seq, output) in enumerate(batch):
            if self._interrupted.is_set() and row >= len(batch) // 2:
                return False  # half of the step stays in memory, as in llama.cpp
            memory = self._memory.setdefault(seq, [])
            assert pos == len(memory), f"position {pos} of sequence {seq} follows {len(memory)}"
            memory.append(token)
            self.computed += 1
            if output:
                self._rows[row] = seq, token
        self._embeddings = embeddings
        return True

    def sample(self, seq: int, row: int) -> Sampled:
        assert self._rows[row][0] == seq
        prompt, _ = self._answers[seq]
        assert self._memory[seq] == prompt + self._said[seq]
        token = self._next(seq)
        self._said[seq].append(token)
        self._done[seq] += 1
        return Sampled(token)

    def accept(self, seq: int, token: int) -> None:
        self.accepted[seq].append(token)
        self._done[seq] += token == self._next(seq)
        self._said[seq].append(token)

    def _next(self, seq: int) -> int:
        _, answer = self._answers[seq]
        return answer[self._done[seq]] if self._done[seq] < len(answer) else END

    def embedding(self, row: int, seq: int) -> NDArray[np.float32]:
        """One dimension for each token there is."""
        assert self._embeddings
        assert self._rows[row][0] == seq
        hidden = np.zeros(self.info.n_vocab, np.float32)
        hidden[self._rows[row][1]] = 1
        return hidden

    def finish(self, seq: int) -> None:
        self._answers.pop(seq, None)

    def take_sampler(self, seq: int) -> Sampler | None:
        if seq not in self._answers:
            return None
        tables = (self._answers, self._said, self._done, self.constraints, self.accepted)
        return ScriptedSampler(tuple(table.pop(seq) for table in tables))

    def give_sampler(self, seq: int, sampler: Sampler) -> None:
        assert seq not in self._answers
        assert isinstance(sampler, ScriptedSampler)
        tables: tuple[dict[int, Any], ...] = (self._answers, self._said, self._done, self.constraints, self.accepted)
        for table, value in zip(tables, sampler.state, strict=True):
            table[seq] = value

    def reusable(self, seq: int, count: int) -> int:
        assert count <= len(self._memory[seq])
        return count if self._can_forget or count == len(self._memory[seq]) else 0

    def truncate(self, seq: int, count: int) -> bool:
        memory = self._memory.setdefault(seq, [])
        kept = self._can_forget or count in (0, len(memory))
        del memory[count if kept else 0 :]
        return kept

    def copy(self, source: int, target: int, count: int) -> bool:
        self._memory[target] = self._memory[source].copy()
        return self.truncate(target, count)

    def set_threads(self, count: int) -> None:
        assert count > 0
        self.threads = count

    def bench(self, prompt_tokens: int, generated_tokens: int) -> float | None:
        """A millisecond for each step."""
        assert not self._answers
        steps = -(-prompt_tokens // self.n_batch) + generated_tokens
        self._memory.clear()
        for _ in range(steps):
            self.steps += 1
            self._before_step(self.steps)
            if self._interrupted.is_set():
                return None
        return steps / 1000

    def interrupt(self) -> None:
        self._interrupted.set()

    def rearm(self) -> None:
        self._interrupted.clear()

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def loads(engine: Engine, may_load: Callable[[], bool] = lambda: True) -> LoadEngine:
    """A load that reports progress until `may_load` says that it is complete, and gives `engine`."""

    def load(_: WorkerConfig, progress: Progress) -> Engine:
        while progress(0.5):
            if may_load():
                progress(1.0)
                return engine
        raise LoadAborted

    return load
