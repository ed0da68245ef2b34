"""`rbee batch`, from its input to its output: read this first.

    survey     the whole input once: how many lines, which cannot be asked, its digest
    journal    what the output has already
    asker      a gateway inside this process, which knows nodes and workers
    crew       as many lines at once as the workers' slots hold, each asked until it is done or has failed
    summary

Rules
- A line that cannot be asked, or that fails, becomes a line of the output. What ends the run is a disk that is full, a
  fleet that is of no use, Ctrl-C.
- However it ends, the same command goes on: what is in the output is not asked again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from rbee import audit
from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Notice
from rbee.batch.asker import Asker, asker_for
from rbee.batch.crew import Crew
from rbee.batch.journal import Journal, ahead_of
from rbee.batch.reading import Survey
from rbee.batch.request import BatchRequest, Summary
from rbee.batch.results import Run
from rbee.batch.tally import Tally
from rbee.batch.verdict import Health
from rbee.context import Context
from rbee.gateway.base.views import NodeState
from rbee_remote.protocol import ErrorCode


async def batch(context: Context, asked: BatchRequest) -> Summary:
    """Raises UsageError for an input or output that cannot be used, RbeeError IN_USE where another run has the output,
    DISK_FULL, and what the nodes say where none of them gives an answer."""
    context.inventory.select(asked.nodes)
    survey = await asyncio.to_thread(asked.input.survey)
    _check(asked)
    tell_of(context, survey)
    run = Run.of(survey.sha256, asked.digest)
    with audit.recorded(context.settings, "batch", emit=context.emit, node=asked.nodes or "") as details:
        details |= {"lines": survey.count, "model": asked.defaults.model or None}
        with Journal(asked.out, run, in_order=asked.in_order) as journal:
            await asyncio.to_thread(_look_at, journal, asked, context)
            tally = Tally(survey.count, journal.done.count, time.monotonic)
            tally.done, tally.failed, tally.tokens = journal.done.count, journal.failed, journal.tokens
            try:
                stopped = await _work(context, asked, survey, journal, tally)
            except asyncio.CancelledError:
                told = f"{tally.done} of {tally.total} lines are done; the same command goes on from here"
                context.emit(Notice(told))
                raise
            finally:
                details |= {"done": tally.done, "failed": tally.failed, "tokens": tally.tokens}
    return Summary(
        total=survey.count,
        done=tally.done,
        failed=tally.failed,
        tokens=tally.tokens,
        answered=tally.answered,
        again=tally.again,
        seconds=tally.seconds,
        by_node=dict(tally.by_node),
        stopped=stopped,
    )


def _check(asked: BatchRequest) -> None:
    for path in (asked.out, ahead_of(asked.out)):
        with suppress(OSError):  # what is wrong with it is told when it is opened
            if path.samefile(asked.input.path):
                raise UsageError("the output is the input", hint="take another --out")


def tell_of(context: Context, survey: Survey) -> None:
    """What is to be known of the input before anything is asked."""
    if survey.bad_count:
        first = "; ".join(f"line {number}: {why}" for number, why in survey.bad)
        more = ", …" if survey.bad_count > len(survey.bad) else ""
        lines = "1 line asks" if survey.bad_count == 1 else f"{survey.bad_count} lines ask"
        context.emit(Notice(f"{lines} for nothing and will be errors in the output ({first}{more})"))
    if survey.twice:
        lines = "1 line has" if survey.twice == 1 else f"{survey.twice} lines have"
        context.emit(Notice(f"{lines} the custom_id of another one; its answer has the line in its id"))


def _look_at(journal: Journal, asked: BatchRequest, context: Context) -> None:
    if asked.restart:
        journal.begin_anew()
    if asked.retry_failed and (count := journal.take_back_failed()):
        told = "1 line that failed is" if count == 1 else f"{count} lines that failed are"
        context.emit(Notice(f"{told} asked again"))
    journal.read()
    if journal.done.count and not asked.retry_failed:
        context.emit(Notice(f"{asked.out} has {journal.done.count} lines already; going on"))


async def _work(context: Context, asked: BatchRequest, survey: Survey, journal: Journal, tally: Tally) -> str:
    """Why lines are left, "" where none is."""
    health = Health(asked.retries, asked.give_up_s)
    if tally.done >= tally.total:
        return ""
    async with asker_for(context, asked.nodes, asked.aliases) as asker:
        models = await known_models(context, asked, survey, asker)
        crew = Crew(asker, asked, journal, tally, health, models)
        return await crew.work(context.emit)


async def known_models(context: Context, asked: BatchRequest, survey: Survey, asker: Asker) -> frozenset[str]:
    """The refs that lines ask for. Raises NodeError where all nodes are there, and none of the models is."""
    await asker.acquainted()
    names = {asked.defaults.model: survey.count} if asked.defaults.model else dict(survey.models)
    found: set[str] = set()
    missing: list[tuple[str, NodeError]] = []
    for name in names:
        try:
            found.update(asker.models(name))
        except NodeError as error:
            missing.append((name, error))
    all_there = all(node.state is NodeState.UP for node in asker.nodes)
    if missing and not found and all_there:
        _, why = missing[0]
        hint = "--model NAME takes one for all lines, whatever they name"
        raise NodeError(ErrorCode.MODEL_NOT_FOUND, why.message, hint=f"{why.hint}; {hint}" if why.hint else hint)
    for name, why in missing if all_there else ():
        lines = "1 line" if names[name] == 1 else f"{names[name]} lines"
        context.emit(Notice(f"{lines} will be errors: {why.message}"))
    return frozenset(found)
