"""Texts to embed or to rank: how many requests and texts are computed at once.

Rules
- Everything here runs on the event loop's thread.
- Of a model that computes texts alone, a request is refused as a whole, before anything is computed, where as many are
  open as there are slots and places in the queue. Each has as many texts at the engine as there are sequences, so that
  a step is filled and a short request waits for a part of a long one.
- Where texts are embedded beside requests that generate, a request has as many at once as there are slots: the queue is
  for others too.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rbee_remote.protocol import AdapterScale, ErrorCode, RemoteError, WorkerConfig
from rbee_remote.protocol.abilities import EMBEDDINGS, RERANK
from rbee_remote.system.together import all_or_none
from rbee_remote.worker.compute.batching import QueueFull
from rbee_remote.worker.compute.loop import EngineThread
from rbee_remote.worker.engine.interface import LoadedModel
from rbee_remote.worker.requests import prompt
from rbee_remote.worker.requests.adapters import scales_of
from rbee_remote.worker.requests.generation import Embedding
from rbee_remote.worker.service.state import State


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came of a text. tokens: how many it had. values: as `Embedding` gives them."""

    tokens: int
    values: list[float]


class Texts:
    """on_change: called when a text comes or ends. busy: the error of a request that finds no room.

    requests: how many are open; background: those of them that give way to others.
    """

    def __init__(
        self,
        config: WorkerConfig,
        engine: EngineThread,
        state: State,
        on_change: Callable[[], None],
        busy: Callable[[], RemoteError],
    ) -> None:
        self.requests = 0
        self.background = 0
        self._config = config
        self._engine = engine
        self._state = state
        self._on_change = on_change
        self._busy = busy

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        truncate: int | None = None,
        lora: Sequence[AdapterScale] | None = None,
        *,
        background: bool = False,
    ) -> list[Embedded]:
        """The embeddings of texts or of their tokens, of length 1 as vectors. truncate: how many tokens of a longer
        text are taken, 0 for as many as the model takes. lora: as `GenerateRequest` has it. background: whether they
        give way to others, which are then not refused for their sake. All, or the first error.

        Raises RemoteError: USAGE for a text that is empty or longer than the model takes, ALL_SLOTS_BUSY, WORKER_GONE,
        or why the load failed.
        """
        info = await self._state.wait_able(EMBEDDINGS)
        tokens = await asyncio.to_thread(self._engine.texts, texts, self._most(info, truncate))
        return await self._compute(tokens, lora, info, background)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        truncate: int | None = None,
        per_document: int | None = None,
        lora: Sequence[AdapterScale] | None = None,
        *,
        background: bool = False,
    ) -> list[Embedded]:
        """For each document what the model makes of it and the query: its scores, the first of which says how well the
        two go together. truncate, lora, background: as of `embed`. per_document: as truncate, of the document alone.
        Raises as it."""
        info = await self._state.wait_able(RERANK)
        most = self._most(info, truncate)
        pairs = await asyncio.to_thread(self._engine.pairs, query, documents, most, per_document)
        return await self._compute(pairs, lora, info, background)

    def _most(self, info: LoadedModel, truncate: int | None) -> int | None:
        most = most_tokens(info, self._config.ctx)
        return None if truncate is None else min(truncate, most) if truncate > 0 else most

    async def _compute(
        self,
        texts: Sequence[Sequence[int]],
        lora: Sequence[AdapterScale] | None,
        info: LoadedModel,
        background: bool,
    ) -> list[Embedded]:
        scales = scales_of(self._config.adapters, lora)
        for index, tokens in enumerate(texts):
            _check(tokens, index, len(texts), most_tokens(info, self._config.ctx), info)
        alone = bool(info.use.pooling)
        taken = self.requests - (0 if background else self.background)
        if alone and taken >= self._config.slots + self._config.queue:
            raise self._busy()
        places = asyncio.Semaphore(info.sequences or self._config.slots if alone else self._config.slots)
        self.requests += 1
        self.background += background
        self._on_change()
        try:
            return await all_or_none(self._one(tokens, scales, info, places, background) for tokens in texts)
        finally:
            self.requests -= 1
            self.background -= background
            self._on_change()

    async def _one(
        self,
        tokens: Sequence[int],
        scales: tuple[float, ...],
        info: LoadedModel,
        places: asyncio.Semaphore,
        background: bool,
    ) -> Embedded:
        async with places:
            future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
            embedding = Embedding(uuid.uuid4().hex, tokens, info.pooling, future, scales, background=background)
            try:
                self._engine.submit_embedding(embedding)
            except QueueFull as error:
                raise self._busy() from error
            self._on_change()
            try:
                return Embedded(len(tokens), await future)
            except asyncio.CancelledError:  # its client went away
                if self._engine.end(embedding.key, "canceled"):
                    self._on_change()
                raise


def most_tokens(info: LoadedModel, ctx: int) -> int:
    """Of a text. An encoder has no place for a token behind those that it was trained for."""
    return min(ctx, info.n_ctx_train) if info.use.cacheless else ctx


def _check(tokens: Sequence[int], index: int, count: int, most: int, info: LoadedModel) -> None:
    which = f"text {index} of {count}" if count > 1 else "the text"
    if len(tokens) > most:
        told = f"{which} has {len(tokens)} tokens, and the model takes {most}"
        if most < info.n_ctx_train:
            told += f" as it is loaded, {info.n_ctx_train} with a larger context"
        raise RemoteError(ErrorCode.USAGE, told, details={"prompt_tokens": len(tokens), "ctx": most})
    if not tokens:
        raise RemoteError(ErrorCode.USAGE, f"{which} has no tokens")
    prompt.check_tokens(tokens, info.n_vocab)
