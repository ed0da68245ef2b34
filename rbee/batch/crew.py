"""The lines of a run, as many at once as the workers' slots hold: each is asked until it is done or has failed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice
from rbee.batch import verdict
from rbee.batch.asker import Answer, Asker
from rbee.batch.journal import Journal
from rbee.batch.lines import Ask, LineError, Raw, read_line
from rbee.batch.pace import at_once, doing
from rbee.batch.request import BatchRequest
from rbee.batch.results import Outcome, Run, line_of
from rbee.batch.tally import Tally
from rbee.batch.verdict import Attempts, Health
from rbee.gateway.base.views import NodeState
from rbee_remote.protocol import ErrorCode

#: Seconds between two looks at the workers, and between two reports.
LOOK_S, REPORT_S = 0.25, 1.0
#: Lines that may be done before the turn of one that is not, in the input's order.
MOST_AHEAD = 50_000
BAD_LINE = "invalid_line"


class Crew:
    """models: refs that lines ask for."""

    def __init__(
        self,
        asker: Asker,
        asked: BatchRequest,
        journal: Journal,
        tally: Tally,
        health: Health,
        models: frozenset[str],
    ) -> None:
        self._asker = asker
        self._asked = asked
        self._journal = journal
        self._tally = tally
        self._health = health
        self._models = models
        self._lines: Iterator[Raw] = asked.input.lines()
        self._workers: set[asyncio.Task[None]] = set()
        self._active = 0
        self._most = 0
        self._stopped = ""
        self._is_over = False

    async def work(self, emit: Emit) -> str:
        """Why lines are left, "" for none. Raises RbeeError where nobody answers, or the output cannot be written."""
        syncing = asyncio.create_task(self._journal.keep_synced())
        reported_at = was_bad_at = 0.0
        try:
            while True:
                self._man()
                if not self._workers:
                    break
                done, _ = await asyncio.wait(
                    {*self._workers, syncing}, timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION
                )
                self._workers -= done
                for task in done:
                    task.result()
                now = time.monotonic()
                if now - reported_at >= REPORT_S:
                    reported_at = now
                    emit(self._tally.progress(self._state()))
                if self._health.is_bad and now - was_bad_at >= verdict.TELL_S and self._health.why:
                    was_bad_at = now
                    emit(Notice(f"no answer for now: {self._health.why}; trying again"))
                if self._health.is_over(now):
                    known = self._health.code in ErrorCode.__members__
                    raise NodeError(
                        ErrorCode[self._health.code] if known else ErrorCode.WORKER_GONE,
                        f"no node gives an answer: {self._health.why}",
                        hint="nothing is lost: the same command goes on from here",
                    )
        finally:
            for task in (*self._workers, syncing):
                task.cancel()
            await asyncio.gather(*self._workers, syncing, return_exceptions=True)
        emit(self._tally.progress())
        return self._stopped

    def _man(self) -> None:
        """As many workers as lines may be asked at once."""
        self._most = at_once(self._asker.nodes, self._models)
        while self._active < self._most and not self._is_over and self._may_begin(self._active):
            self._active += 1
            self._workers.add(asyncio.create_task(self._one_after_another()))

    def _may_begin(self, others: int) -> bool:
        """Where nobody else is at work, the next line is the one for which those that are ahead wait."""
        return self._journal.ahead < MOST_AHEAD or not others

    def _state(self) -> str:
        return doing(self._asker.nodes) or ("no answer for now" if self._health.is_bad else "")

    async def _one_after_another(self) -> None:
        try:
            while self._active <= self._most and self._may_begin(self._active - 1) and (raw := self._next()):
                await self._do(raw)
        finally:
            self._active -= 1

    def _next(self) -> Raw | None:
        """The next line that is not done; None where none is left, or none may be begun."""
        most = self._asked.most_tokens
        for raw in self._lines:
            if most is not None and self._tally.tokens >= most and raw.number not in self._journal.done:
                self._stopped = f"{self._tally.tokens:,} tokens were used, of {most:,} (--max-cost-tokens)"
                break
            self._journal.begin(raw.number)
            if raw.number not in self._journal.done:
                return raw
        self._is_over = True
        return None

    async def _do(self, raw: Raw) -> None:
        try:
            ask = read_line(raw, self._asked.input.template)
        except LineError as error:
            self._finish(raw.number, error.custom_id, Outcome(error=(BAD_LINE, str(error))))
            await asyncio.sleep(0)
            return
        outcome = await self._until_done(ask)
        self._finish(ask.number, ask.custom_id, outcome)

    async def _until_done(self, ask: Ask) -> Outcome:
        attempts, began, asked = Attempts(self._health.answers), time.monotonic(), 0
        body = self._asked.defaults.body(ask)
        while True:
            asked += 1
            answer = await self._asker.ask(ask.path, body, uuid.uuid4().hex)
            is_final, code = self._judge(answer)
            if is_final:
                self._health.got()
                return outcome_of(answer, asked, time.monotonic() - began)
            why = message_in(answer)
            if self._health.missed(attempts, code, why, time.monotonic()):
                return outcome_of(answer, asked, time.monotonic() - began)
            self._tally.again += 1
            await asyncio.sleep(attempts.pause_s())

    def _judge(self, answer: Answer) -> tuple[bool, str]:
        """Whether the answer stays as it is, and the code of what is wrong with it."""
        code = answer.ended.finish
        if code == ErrorCode.MODEL_NOT_FOUND.value and any(
            node.state is not NodeState.UP for node in self._asker.nodes
        ):
            return False, ErrorCode.CONNECTION_LOST.value  # the one that has it may be away
        return verdict.is_answer(answer.status) or verdict.is_refused(answer.status), code

    def _finish(self, number: int, custom_id: str | None, outcome: Outcome) -> None:
        self._journal.add(number, line_of(self._run, number, custom_id, outcome))
        self._tally.add(
            outcome.node, failed=outcome.error is not None, tokens=outcome.tokens, completion=outcome.completion
        )

    @property
    def _run(self) -> Run:
        return self._journal.run


def outcome_of(answer: Answer, tries: int, seconds: float) -> Outcome:
    ended = answer.ended
    usage, worker = ended.usage, ended.worker
    error = None
    if not verdict.is_answer(answer.status):
        error = (ended.finish or str(answer.status), message_in(answer))
    return Outcome(
        status=answer.status,
        request_id=ended.request_id,
        body=_parsed(answer.body),
        error=error,
        node=worker.node if worker else "",
        tries=tries + ended.failovers,
        seconds=seconds,
        tokens=usage.prompt + usage.completion if usage else 0,
        completion=usage.completion if usage else 0,
    )


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def message_in(answer: Answer) -> str:
    body = _parsed(answer.body)
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else f"status {answer.status}"
