"""Phase 8: one request to one worker, from the first byte sent to the last token or to what is left of it.

Rules
- A request that is not going to be read any more is canceled on the worker before this module lets go of it.
- A connection that is lost is no end: `stream` comes back for the rest.
- Text that was generated is never lost: whatever ends an answer early, the text is in a file and the error names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from rbee.base.deadline import Deadline
from rbee.base.errors import ConfigError, ConnectError, NodeError, RbeeError, RefusedError
from rbee.base.events import Emit, Notice, Reasoning, Retry, Token
from rbee.base.retries import BUSY_DELAYS_S, CANCEL_TIMEOUT_S, LOST_TIMEOUT_S, NOTICED_PAUSE_S, NOTICED_S
from rbee.infer.cancel import tell
from rbee.infer.partial import Answer, PartialAnswer
from rbee.infer.stream import Explain, Patience, SilentWorkerError, answer_events
from rbee.infer.worker_status import HiveReport
from rbee.node.hive_client import WorkerClient
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import Done, ErrorCode, GenerateRequest, Started, TokenEvent

#: What helps at the keyboard against a refusal, by what that is about. A worker, whose clients are not all at one, does
#: not say it.
_HINTS = {
    "chat_template": "--template FILE takes another chat template, --raw sends the prompt without one",
    "chat.template": "mend the file of --template, or of `template` in the inventory; without it the model's is used",
    "chat.continue_final": "leave out --prefill, or give a template that can continue an answer with --template FILE",
}


class UnansweredError(NodeError):
    """WORKER_CRASHED: the worker took the request and died before anything of its answer came: another may answer."""


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
    UnansweredError when it died before anything of the answer came, WORKER_CRASHED when it died with the answer half
    done, ConnectError when the connection was lost for good.
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
    warnings: Sequence[str] = ()
    try:
        async with aclosing(stream) as events:
            async for event in events:
                match event:
                    case Started():
                        partial.max_tokens, warnings = event.max_tokens, event.warnings
                    case TokenEvent():
                        if partial.is_empty and (event.text or event.reasoning or event.calls):
                            _begin(partial, warnings, emit)
                        partial.add(event)
                        _tell(event, partial, emit)
                    case Done():
                        if partial.is_empty:
                            _begin(partial, warnings, emit)
                        for call in partial.finished_calls(event.finish_reason):
                            emit(call)
                        return partial.whole(event)
        raise AssertionError("the stream of an answer ends with Done or raises")
    except (NodeError, ConnectError, RefusedError, ConfigError) as error:
        if partial.max_tokens is None:
            _add_hint(error, request)
            raise
        raise await _broken(error, endpoint, partial) from error
    except BaseException:
        # Ctrl-C, a deadline, a stdout that is closed or full: nobody is going to read the rest.
        await _cancel(endpoint, request.request_id, emit)
        raise


def _begin(partial: PartialAnswer, warnings: Sequence[str], emit: Emit) -> None:
    """Not before something comes: a worker that dies until then has shown nothing, and another may answer."""
    partial.begin()
    for warning in warnings:
        emit(Notice(warning))
    if partial.begins_with:
        emit(Token(partial.begins_with, 0))


def _tell(event: TokenEvent, partial: PartialAnswer, emit: Emit) -> None:
    if event.reasoning:
        emit(Reasoning(event.reasoning, event.tokens))
    if event.text or not (event.reasoning or event.calls):
        emit(Token(event.text, event.tokens))
    if event.calls:
        for call in partial.finished_calls():
            emit(call)


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


def _add_hint(error: RbeeError, request: GenerateRequest) -> None:
    """To a worker's refusal of messages."""
    about = error.details.get("about") or error.details.get("field")
    if error.code is ErrorCode.MODEL_INVALID:  # the model is loaded: it is its template
        about = "chat_template"
    if request.messages:
        error.hint = _HINTS.get(str(about), error.hint)


async def _broken(error: RbeeError, endpoint: Endpoint, partial: PartialAnswer) -> RbeeError:
    """The error for an answer that began and did not end, with its text saved."""
    progress, details = partial.progress, partial.save()
    has_failed = error.code is ErrorCode.WORKER_CRASHED and not isinstance(error, SilentWorkerError)
    if error.code is not ErrorCode.WORKER_GONE and not (has_failed and partial.is_empty):
        return error.after(progress, details)
    info = (await _noticed(endpoint.explain)).worker
    if info and info.error:
        details["reason"] = info.error.get("message", "")
    if has_failed:
        details["reason"] = error.message
    if info and info.log:
        details["log"] = info.log
    hint = "the next `rbee infer` starts a new worker; `rbee logs NODE` says what happened to this one"
    if partial.is_empty:
        message = "the worker died before its first token"
        return UnansweredError(ErrorCode.WORKER_CRASHED, message, hint=hint, details=details)
    return NodeError(ErrorCode.WORKER_CRASHED, f"the worker died after {progress}", hint=hint, details=details)


async def _noticed(explain: Explain) -> HiveReport:
    """What the hive says of a dead worker, once it knows that it died; it would hand out the same one until then."""
    report = HiveReport(reached=False)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOTICED_S):
            while (report := await explain()).reached and not report.over:  # noqa: ASYNC110 - it is elsewhere
                await asyncio.sleep(NOTICED_PAUSE_S)
    return report
