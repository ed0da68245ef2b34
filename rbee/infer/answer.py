"""Phase 8: one request to one worker, from the first byte sent to the last token or to what is left of it.

Rules
- A request that is not going to be read any more is canceled on the worker before this module lets go of it.
- A connection that is lost is no end: `stream` comes back for the rest.
- Text that was generated is never lost: whatever ends an answer early, the text is in a file and the error names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rbee.base.deadline import Deadline
from rbee.base.errors import ConfigError, ConnectError, NodeError, RbeeError, RefusedError
from rbee.base.events import Emit, Retry, Token
from rbee.base.retries import BUSY_DELAYS_S, CANCEL_TIMEOUT_S, LOST_TIMEOUT_S
from rbee.infer.cancel import tell
from rbee.infer.stream import Explain, Patience, answer_events
from rbee.node.hive_client import WorkerClient
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import Done, ErrorCode, GenerateRequest, Started, TokenEvent, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. first_token_s: since the request was sent; tokens_per_s: from the first token on."""

    text: str
    finish_reason: str
    usage: Usage
    first_token_s: float
    tokens_per_s: float | None


@dataclass(slots=True)
class PartialAnswer:
    """What came of an answer so far. path: where its text goes if nothing more comes.

    sent_at: when the request was sent last, on the monotonic clock. max_tokens: None until the worker has begun.
    """

    path: Path
    sent_at: float = 0.0
    max_tokens: int | None = None
    tokens: int = 0
    pieces: list[str] = field(default_factory=list)
    first_at: float | None = None
    first_tokens: int = 0

    @classmethod
    def of(cls, folder: Path, request_id: str) -> PartialAnswer:
        """The file's name says when it was."""
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        return cls(folder / f"answer-{stamp}-{request_id[:8]}.txt")

    @property
    def progress(self) -> str:
        return f"{self.tokens} of {self.max_tokens} tokens"

    def add(self, event: TokenEvent) -> None:
        self.tokens = event.tokens
        self.pieces.append(event.text)
        if self.first_at is None:
            self.first_at, self.first_tokens = time.monotonic(), event.tokens

    def whole(self, done: Done) -> Answer:
        now = time.monotonic()
        first_at = self.first_at or now
        further = self.tokens - self.first_tokens
        return Answer(
            text="".join(self.pieces),
            finish_reason=done.finish_reason,
            usage=done.usage,
            first_token_s=first_at - self.sent_at,
            tokens_per_s=further / (now - first_at) if further > 0 and now > first_at else None,
        )

    def save(self) -> dict[str, str]:
        """How far it came and where its text went, as details of an error; no text, no file."""
        if self.max_tokens is None:
            return {}
        details = {"generated": self.progress}
        if not any(self.pieces):
            return details
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self.path, flags, 0o600), "w", encoding="utf-8") as file:
                file.write("".join(self.pieces))
        except OSError as error:
            return {**details, "not saved": str(error)}
        return {**details, "saved": str(self.path)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an answer comes from. connection: what `worker` speaks over, opened anew when it breaks.

    explain: what the hive says about a worker that hung up or fell silent.
    """

    worker: WorkerClient
    connection: ReconnectingConnection
    explain: Explain
    deadline: Deadline = field(default_factory=Deadline)
    patience: Patience = field(default_factory=Patience)


async def answer(
    endpoint: Endpoint,
    request: GenerateRequest,
    partial: PartialAnswer,
    *,
    emit: Emit,
    retries: int = len(BUSY_DELAYS_S),
) -> Answer:
    """Generate, and report each token once.

    partial: takes in what comes. retries: how often a busy worker is asked again, three times at most. The deadline is
    the caller's to enforce.
    Raises NodeError ALL_SLOTS_BUSY after the last try, WORKER_GONE when the worker was not there to begin with,
    WORKER_CRASHED when it died with the answer half done, ConnectError when the connection was lost for good.
    """
    delays = BUSY_DELAYS_S[:retries]
    for attempt, delay in enumerate((*delays, None), start=1):
        try:
            return await _one_try(endpoint, request, partial, emit)
        except NodeError as error:
            if error.code is not ErrorCode.ALL_SLOTS_BUSY or delay is None:
                raise
            emit(Retry("the worker", attempt, len(delays) + 1, error.message, delay))
            await asyncio.sleep(delay)
    raise AssertionError("the last try returns or raises")


async def _one_try(endpoint: Endpoint, request: GenerateRequest, partial: PartialAnswer, emit: Emit) -> Answer:
    partial.sent_at = time.monotonic()
    stream = answer_events(
        endpoint.worker,
        request,
        connection=endpoint.connection,
        explain=endpoint.explain,
        deadline=endpoint.deadline,
        emit=emit,
        patience=endpoint.patience,
    )
    try:
        async with aclosing(stream) as events:
            async for event in events:
                match event:
                    case Started():
                        partial.max_tokens = event.max_tokens
                    case TokenEvent():
                        partial.add(event)
                        emit(Token(event.text, event.tokens))
                    case Done():
                        return partial.whole(event)
        raise AssertionError("the stream of an answer ends with Done or raises")
    except (NodeError, ConnectError, RefusedError, ConfigError) as error:
        if partial.max_tokens is None:
            raise
        raise await _broken(error, endpoint, partial) from error
    except BaseException:
        # Ctrl-C, a deadline, a stdout that is closed or full: nobody is going to read the rest.
        await _cancel(endpoint, request.request_id, emit)
        raise


async def _cancel(endpoint: Endpoint, request_id: str, emit: Emit) -> None:
    """Best effort: a worker that cannot be told any more ends the request a minute later, or at its deadline."""
    if endpoint.deadline.passed:
        return

    async def telling() -> None:
        if endpoint.connection.is_open:
            with contextlib.suppress(ConnectError, TimeoutError):  # Ctrl-C came because nothing came any more
                async with asyncio.timeout(CANCEL_TIMEOUT_S / 2):
                    return await endpoint.worker.cancel(request_id)
        await endpoint.connection.reopen()
        return await endpoint.worker.cancel(request_id)

    timeout_s = CANCEL_TIMEOUT_S if endpoint.connection.is_open else LOST_TIMEOUT_S
    otherwise = "its worker ends the answer within a minute"
    await tell(endpoint.connection.node, telling(), emit, otherwise=otherwise, timeout_s=timeout_s)


async def _broken(error: RbeeError, endpoint: Endpoint, partial: PartialAnswer) -> RbeeError:
    """The error for an answer that began and did not end, with its text saved."""
    progress, details = partial.progress, partial.save()
    if error.code is not ErrorCode.WORKER_GONE:
        return error.after(progress, details)
    info = (await endpoint.explain()).worker
    if info and info.error:
        details["reason"] = info.error.get("message", "")
    if info and info.log:
        details["log"] = info.log
    return NodeError(
        ErrorCode.WORKER_CRASHED,
        f"the worker died after {progress}",
        hint="the next `rbee infer` starts a new worker; `rbee logs NODE` says what happened to this one",
        details=details,
    )
