"""What scheduling asks of an engine, and nothing of llama.cpp.

Two classes have it: `engine.LlamaEngine` and `testing.ScriptedEngine`.

Words: a sequence (`seq`, from 0 to slots - 1) is one request's context in the engine's memory; a row is the index of
a token in the batch whose logits were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rbee_remote.protocol import Sampling, WorkerConfig

#: Called with the loaded share from 0 to 1, in the loading thread; False aborts the load.
Progress = Callable[[float], bool]


class BatchToken(NamedTuple):
    """One token of a step: its position in its sequence, and whether the logits after it are wanted."""

    token: int
    pos: int
    seq: int
    logits: bool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What requests need to know of a loaded model.

    chat_template: the Jinja source from the GGUF, None where it has none. bos and eos: their text, empty where the
    vocabulary has none. adds_bos, adds_eos: whether `tokenize` with add_special puts them there.
    device: "cpu", or the name of the GPU. backend: cpu, cuda, metal, rocm, vulkan, …
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


class LoadAborted(Exception):
    """The progress callback said no."""


class Engine(Protocol):
    """A loaded model with a fixed number of sequences.

    Everything but `tokenize`, `piece`, `is_end` and `interrupt` belongs to one thread at a time.
    """

    info: ModelInfo
    #: Most tokens that one `decode` takes.
    n_batch: int

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes:
        """The token's bytes, which may be a part of a character; empty for a control token."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""

    def start(self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int]) -> None:
        """Clear the sequence and give it a sampler chain of its own."""

    def decode(self, batch: Sequence[BatchToken]) -> bool:
        """Compute a step. False when `interrupt` cut it short: part of it may stand in the sequences' memory."""

    def sample(self, seq: int, row: int) -> int:
        """The next token of `seq` from the logits of `row` of the last decode."""

    def forget(self, seq: int, pos: int) -> bool:
        """Drop the memory of `seq` from position `pos`. False where the model cannot and forgot the whole sequence."""

    def clear(self, seq: int) -> None:
        """Drop the sequence's memory and its sampler chain."""

    def interrupt(self) -> None:
        """From any thread: end the running `decode` as soon as possible, or the next one if none runs."""

    def rearm(self) -> None:
        """Take an `interrupt` back."""

    def close(self) -> None:
        """Free everything. No other method may be called after it."""


#: Makes an engine, reporting progress. Raises RemoteError (MODEL_*, RAM_*, VRAM_*, BACKEND_*) or LoadAborted.
LoadEngine = Callable[[WorkerConfig, Progress], Engine]
