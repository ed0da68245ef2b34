"""One request on its way: what it has computed, when it is over, and the events or the result that tell so."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rbee_remote.protocol import (
    Done,
    GenerateRequest,
    RemoteError,
    Started,
    TokenEvent,
    Usage,
    WorkerTimings,
)
from rbee_remote.worker.engine.interface import Sampled
from rbee_remote.worker.requests import sampling
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.prompt import Prompt
from rbee_remote.worker.requests.splitter import Parts, Splitter
from rbee_remote.worker.requests.stream import TextStream
from rbee_remote.worker.requests.tracking import Tracking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Generation:
    """finish_reason: None while it goes on. prompt: None until the model is there to make it.

    forced: tokens that come next without being sampled, empty for nearly all answers. tracking: None for nearly all.
    digests: of the prompt as it came (`prompt_digests`). background: whether it gives way to others.
    """

    def __init__(
        self,
        request: GenerateRequest,
        journal: Journal,
        prompt: Prompt | None = None,
        tracking: Tracking | None = None,
        digests: tuple[str, ...] = (),
        *,
        background: bool = False,
    ) -> None:
        self.request = request
        self.background = background
        self.digests = digests
        self.journal = journal
        self.prompt = prompt
        self.tracking = tracking
        self.seed = tracking.seed if tracking else sampling.resolve_seed(request.sampling)
        self.tokens = 0
        self.finish_reason: str | None = None
        self.forced: deque[int] | tuple[()] = ()
        self._splitter: Splitter | None = None  # of an answer that is more than content
        self._stream = TextStream(request.stop)
        self._received = time.monotonic()
        self._seated: float | None = None
        self._first_token: float | None = None

    @property
    def key(self) -> str:
        return self.request.request_id

    def begin(self, reused: int) -> Started:
        """It has its slot, where `reused` tokens are computed already: of its prompt, and of what was chosen elsewhere
        after it."""
        prompt = self.prompt
        assert prompt is not None
        self._seated = time.monotonic()
        if prompt.stops:
            self._stream = TextStream((*self.request.stop, *prompt.stops))
        if prompt.shape is not None and prompt.shape.read_by is not None:
            self._splitter = Splitter(prompt.shape.read_by, self._stream, self.tracking.name if self.tracking else "")
            self.forced = self._splitter.forced
        cached = min(reused, len(prompt.tokens))
        return Started(len(prompt.tokens), prompt.max_tokens, self.seed, cached, prompt.warnings)

    def advance(self, sampled: Sampled, piece: bytes, *, is_end: bool) -> TokenEvent | None:
        """Take the next token; None for the one that ends the text, which is not part of it, and for one that was not
        asked for, unless the answer is tracked. Raises RemoteError INTERNAL for an answer that cannot be read."""
        assert self.prompt is not None
        self._first_token = self._first_token or time.monotonic()
        if is_end or not self.prompt.max_tokens:
            self.finish_reason = "stop" if is_end else "length"
            return None if self.tracking is None else TokenEvent("", self.tokens, token=sampled.token)
        self.tokens += 1
        told = None if self.tracking is None else sampled.token
        if self._splitter is None:
            event = TokenEvent(self._stream.feed(piece), self.tokens, sampled.logprobs, token=told)
        else:
            text, reasoning, calls = self._splitter.feed(sampled.token, piece)
            event = TokenEvent(text, self.tokens, sampled.logprobs, reasoning, calls, told)
        if self._stream.stopped or (self._splitter is not None and self._splitter.over):
            self.finish_reason = "stop"
        elif self.tokens >= self.prompt.max_tokens:
            self.finish_reason = "length"
        return event

    def replayed(self) -> None:
        """The tokens until now were not computed here."""
        self._first_token = None

    def finish(self, reason: str) -> list[TokenEvent | Done | RemoteError]:
        """The last events: what was held back, and the sum of it all."""
        if self._splitter is None:
            text, reasoning, calls = Parts(self._stream.finish())
        else:
            try:
                text, reasoning, calls = self._splitter.finish()
            except RemoteError as error:
                return [error]
            if reason == "stop" and self._splitter.calls:
                reason = "tool_calls"
        self.finish_reason = reason
        prompt_tokens = len(self.prompt.tokens) if self.prompt and self._seated else 0
        stop = self._stream.stopped_by if reason == "stop" and self._stream.stopped_by in self.request.stop else ""
        done = Done(reason, Usage(prompt_tokens, self.tokens), self._timings(), stop)
        held = text or reasoning or calls
        return [TokenEvent(text, self.tokens, None, reasoning, calls), done] if held else [done]

    def _timings(self) -> WorkerTimings:
        now = time.monotonic()
        seated = self._seated or now
        first_token = self._first_token or now
        return WorkerTimings(
            queue_s=seated - self._received, prompt_s=first_token - seated, generate_s=now - first_token
        )


class Embedding:
    """A text whose embedding is computed: the mean of its tokens' last hidden states, or the first's or the last's; or
    what a model makes of a query and a document.

    pooling: as in LoadedModel. future: gets the numbers, n_embd of them and of length 1 as a vector; of "rank" the
    scores as they are. It is the event loop's. key: as a request's. scales: of the adapters that compute it.
    background: whether it gives way to others.
    """

    def __init__(
        self,
        key: str,
        tokens: Sequence[int],
        pooling: str,
        future: asyncio.Future[list[float]],
        scales: tuple[float, ...] = (),
        *,
        background: bool = False,
    ) -> None:
        self.background = background
        self.key = key
        self.tokens = tokens
        self.scales = scales
        self._pooling = pooling
        self._future = future
        self._pooled: NDArray[np.float32] | None = None

    def restart(self) -> None:
        """All of its tokens are computed again."""
        self._pooled = None

    def add(self, hidden: NDArray[np.float32]) -> None:
        """Take the hidden state of the next token, or of the whole text."""
        if self._pooled is None or self._pooling in ("last", "rank"):
            self._pooled = hidden.copy()
        elif self._pooling == "mean":
            self._pooled += hidden  # the sum has the mean's direction, and its length is to be 1

    def finish(self, reason: str) -> None:
        """Over: with every token's state added, unless `reason` is canceled."""
        if self._future.done():
            return
        if reason == "canceled" or self._pooled is None:
            self._future.cancel()
            return
        length = 1.0 if self._pooling == "rank" else math.sqrt(float(self._pooled @ self._pooled)) or 1.0
        self._future.set_result((self._pooled / length).tolist())

    def fail(self, error: RemoteError) -> None:
        if not self._future.done():
            self._future.set_exception(error)
