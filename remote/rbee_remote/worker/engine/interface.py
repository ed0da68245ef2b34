"""What scheduling asks of an engine, and nothing of llama.cpp.

Two classes have it: `llama.engine.LlamaEngine`, and the tests' ScriptedEngine.

Words: a sequence (`seq`, from 0 to slots - 1) is the context of one slot in the engine's memory, which stays there
when a request ends, for the next one that begins alike; a row is the index of a token in the batch whose output was
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rbee_remote.protocol import Logprobs, Sampling, WorkerConfig
from rbee_remote.protocol.abilities import Use, abilities

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Called with the loaded share from 0 to 1, in the loading thread; False aborts the load.
Progress = Callable[[float], bool]


class BatchToken(NamedTuple):
    """One token of a step: its position in its sequence, and whether the output after it is wanted."""

    token: int
    pos: int
    seq: int
    output: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that was chosen. logprobs: None unless the request asked for them."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Rerank:
    """How a reranker reads a query and a document. template: a text with {query} and {document}, "" where tokens stand
    around them: begin, the query, between, the document, end."""

    template: str = ""
    begin: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fim:
    """Tokens of a vocabulary around a gap that the model fills in, -1 for those that it has not: before the text that
    stands before the gap, before the one behind it, and where the model begins; of the repository, and of a file."""

    prefix: int = -1
    suffix: int = -1
    middle: int = -1
    repository: int = -1
    file: int = -1

    @property
    def is_there(self) -> bool:
        return min(self.prefix, self.suffix, self.middle) >= 0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What requests need to know of a loaded model.

    chat_template: the Jinja source from the GGUF, None where it has none. bos and eos: their text, empty where the
    vocabulary has none. adds_bos, adds_eos: whether `tokenize` with add_special puts them there.
    device: "cpu", or the name of the GPU. backend: cpu, cuda, metal, rocm, vulkan, …
    architecture: llama.cpp's name. use: what it is made for. sequences: how many the engine has, 0 for the worker's
    slots. rerank: how a query and a document are put together. fim: how a gap is.
    can_share: whether a sequence can take over a part of what another one computes just now. forgets: whether a
    sequence loses what lies far behind as it grows: a sliding window, a recurrent state.
    special_tokens: the texts that `tokenize` with parse_special takes for one token each, wherever they stand, with its
    id: control tokens and user-defined ones. user_defined: those of them that it finds without parse_special too.
    """

    n_ctx_train: int
    n_vocab: int
    chat_template: str | None
    bos: str
    eos: str
    adds_bos: bool
    adds_eos: bool
    backend: str
    device: str
    architecture: str = ""
    use: Use = field(default_factory=Use)
    sequences: int = 0
    rerank: Rerank = field(default_factory=Rerank)
    fim: Fim = field(default_factory=Fim)
    can_share: bool = True
    forgets: bool = False
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    user_defined: frozenset[str] = frozenset()

    @property
    def pooling(self) -> str:
        """How the vector of a text is made of its tokens'. Of a model that generates, the mean."""
        return self.use.pooling or "mean"

    @property
    def able(self) -> tuple[str, ...]:
        """What it can be asked for, as in `abilities`."""
        return abilities(self.architecture, self.use.pooling)


class Constraint(Protocol):
    """What form an answer is to have, made by `Engine.constraint`. One can serve many requests."""

    @property
    def grammar(self) -> str:
        """llguidance's Lark."""


class Sampler(Protocol):
    """What chooses a request's tokens, with all that it remembers of those before."""

    def close(self) -> None:
        """Free it. On the engine's thread, and before the engine's own end."""


class LoadAborted(Exception):
    """The progress callback said no."""


class Engine(Protocol):
    """A loaded model with a fixed number of sequences.

    Everything but `tokenize`, `piece`, `is_end`, `constraint` and `interrupt` belongs to one thread at a time.
    """

    info: LoadedModel
    #: Most tokens that one `decode` takes.
    n_batch: int

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes:
        """The token's bytes, which may be a part of a character; empty for a control token."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""

    def constraint(self, grammar: str) -> Constraint:
        """From any thread, and off the engine's: a grammar in llguidance's Lark, compiled, which takes a second at
        most, and another one for the first. Raises RemoteError: USAGE where it cannot be used or no text fits it,
        NODE_UNSUPPORTED where llguidance is missing, WORKER_GONE once closed."""

    def start(
        self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        """Give the sequence a sampler. Its memory stays as it is. Raises RemoteError USAGE naming the field that
        llama.cpp does not take, a bias for instance; the sequence has no sampler then."""

    def decode(self, batch: Sequence[BatchToken], *, embeddings: bool = False, scales: Sequence[float] = ()) -> bool:
        """Compute a step. False when `interrupt` cut it short: part of it may stand in the sequences' memory.

        scales: how strongly each of the model's adapters is applied to all of it.

        embeddings: whether `embedding` is going to be asked for rows of this step; each of its tokens has an output
        then.
        """

    def sample(self, seq: int, row: int) -> Sampled:
        """The next token of `seq` from the logits of `row` of the last decode. Raises RemoteError USAGE where the
        request's constraint has become too complex to follow, or leaves no token."""

    def accept(self, seq: int, token: int) -> None:
        """A token that was forced, not sampled, counts as generated: for the penalties, and for the constraint, which
        must allow it. Raises RemoteError USAGE where it does not."""

    def embedding(self, row: int, seq: int) -> NDArray[np.float32]:
        """The last hidden state after the token of `row` of the last decode, which belongs to `seq`: n_embd numbers,
        good until the next. Of a model whose texts are computed whole, the text's; of one that ranks, its scores."""

    def finish(self, seq: int) -> None:
        """Take the sequence's sampler away. Its memory stays."""

    def take_sampler(self, seq: int) -> Sampler | None:
        """The sequence's, which has none then; None for one that was not started. It is the caller's to close."""

    def give_sampler(self, seq: int, sampler: Sampler) -> None:
        """Have a sequence without one go on with the sampler of another."""

    def reusable(self, seq: int, count: int) -> int:
        """How many of the first `count` tokens in the memory of `seq` a new request can build on: `count`, or 0 where
        a sliding window or a recurrent state has lost what is needed."""

    def truncate(self, seq: int, count: int) -> bool:
        """Keep the first `count` tokens in the memory of `seq`. False where the model cannot, and it is empty now."""

    def copy(self, source: int, target: int, count: int) -> bool:
        """Make the memory of `target` the first `count` tokens of `source`. False where the model cannot, and `target`
        is empty now."""

    def set_threads(self, count: int) -> None:
        """How many threads the next steps compute with."""

    def bench(self, prompt_tokens: int, generated_tokens: int) -> float | None:
        """Seconds for a prompt of random tokens, then as many single steps, in sequence 0, without sampling: what
        llama-bench calls pp and tg. Every sequence is empty before and after. None when `interrupt` cut it short."""

    def interrupt(self) -> None:
        """From any thread: end the running `decode` as soon as possible, or the next one if none runs."""

    def rearm(self) -> None:
        """Take an `interrupt` back."""

    def close(self) -> None:
        """Free everything. No other method may be called after it."""


#: Makes an engine, reporting progress. Raises RemoteError (MODEL_*, RAM_*, VRAM_*, BACKEND_*) or LoadAborted.
LoadEngine = Callable[[WorkerConfig, Progress], Engine]
