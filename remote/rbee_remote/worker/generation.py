"""One request on its way: what it has generated, when it is over, and the events that tell so."""

from __future__ import annotations

import time

from rbee_remote.protocol import Done, GenerateRequest, Started, TokenEvent, Usage, WorkerTimings
from rbee_remote.worker import sampling
from rbee_remote.worker.journal import Journal
from rbee_remote.worker.prompt import Prompt
from rbee_remote.worker.stream import TextStream


class Generation:
    """finish_reason: None while it goes on. prompt: None until the model is there to make it."""

    def __init__(self, request: GenerateRequest, journal: Journal, prompt: Prompt | None = None) -> None:
        self.request = request
        self.journal = journal
        self.prompt = prompt
        self.seed = sampling.resolve_seed(request.sampling)
        self.tokens = 0
        self.finish_reason: str | None = None
        self._stream = TextStream(request.stop)
        self._received = time.monotonic()
        self._seated: float | None = None
        self._first_token: float | None = None

    @property
    def key(self) -> str:
        return self.request.request_id

    def seat(self) -> Started:
        """It has its slot."""
        assert self.prompt is not None
        self._seated = time.monotonic()
        return Started(len(self.prompt.tokens), self.prompt.max_tokens, self.seed)

    def advance(self, piece: bytes, *, is_end: bool) -> TokenEvent | None:
        """Take the next token; None for the one that ends the text, which is not part of it."""
        assert self.prompt is not None
        self._first_token = self._first_token or time.monotonic()
        if is_end:
            self.finish_reason = "stop"
            return None
        self.tokens += 1
        text = self._stream.feed(piece)
        if self._stream.stopped:
            self.finish_reason = "stop"
        elif self.tokens >= self.prompt.max_tokens:
            self.finish_reason = "length"
        return TokenEvent(text, self.tokens)

    def finish(self, reason: str) -> list[TokenEvent | Done]:
        """The last events: text that was held back, and the sum of it all."""
        self.finish_reason = reason
        held = self._stream.finish()
        prompt_tokens = len(self.prompt.tokens) if self.prompt and self._seated else 0
        done = Done(reason, Usage(prompt_tokens, self.tokens), self._timings())
        return [TokenEvent(held, self.tokens), done] if held else [done]

    def _timings(self) -> WorkerTimings:
        now = time.monotonic()
        seated = self._seated or now
        first_token = self._first_token or now
        return WorkerTimings(
            queue_s=seated - self._received, prompt_s=first_token - seated, generate_s=now - first_token
        )
