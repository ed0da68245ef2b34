"""`rbee batch --sample 10`: some lines asked, their answers shown, and what the whole would take."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from rbee.batch.asker import Asker, asker_for
from rbee.batch.batch import known_models, tell_of
from rbee.batch.crew import BAD_LINE, message_in, outcome_of
from rbee.batch.lines import LineError, Raw, read_line
from rbee.batch.pace import at_once
from rbee.batch.request import BatchRequest
from rbee.batch.results import Outcome
from rbee.batch.sample import Estimate, estimate, spread
from rbee.batch.verdict import is_answer
from rbee.context import Context


@dataclass(frozen=True, slots=True)
class Looked:
    """A line of the sample. text: what was answered, or what is wrong."""

    number: int
    custom_id: str
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Look:
    """total: lines of the input. whole: what all of them would take."""

    total: int
    lines: tuple[Looked, ...]
    whole: Estimate


async def look(context: Context, asked: BatchRequest, wanted: int) -> Look:
    """Asks `wanted` lines, spread over the input, once; nothing is written. Raises as `batch`."""
    context.inventory.select(asked.nodes)
    survey = await asyncio.to_thread(asked.input.survey)
    tell_of(context, survey)
    places = set(spread(survey.count, wanted))
    raws = [raw for place, raw in enumerate(itertools.islice(asked.input.lines(), survey.count)) if place in places]
    async with asker_for(context, asked.nodes, asked.aliases) as asker:
        models = await known_models(context, asked, survey, asker)
        lines = await _ask_all(asker, asked, raws, models)
        most = at_once(asker.nodes, models)
    return Look(survey.count, tuple(lines), estimate(survey.count, [line.outcome for line in lines], most))


async def _ask_all(asker: Asker, asked: BatchRequest, raws: Sequence[Raw], models: frozenset[str]) -> list[Looked]:
    """As many at once as the slots hold; the first alone, with which models are loaded, and which is not timed."""
    places = asyncio.Semaphore(1)

    async def one(raw: Raw) -> Looked:
        async with places:
            return await _ask(asker, asked, raw)

    first = [await one(raw) for raw in raws[:1]]
    places = asyncio.Semaphore(at_once(asker.nodes, models))
    return first + list(await asyncio.gather(*(one(raw) for raw in raws[1:])))


async def _ask(asker: Asker, asked: BatchRequest, raw: Raw) -> Looked:
    try:
        ask = read_line(raw, asked.input.template)
    except LineError as error:
        outcome = Outcome(error=(BAD_LINE, str(error)))
        return Looked(raw.number, error.custom_id or "", outcome, str(error))
    began = time.monotonic()
    answer = await asker.ask(ask.path, asked.defaults.body(ask), uuid.uuid4().hex)
    taken_s = time.monotonic() - began - answer.ended.queue_s
    outcome = outcome_of(answer, 1, max(0.0, taken_s))
    text = text_of(outcome) if is_answer(answer.status) else message_in(answer)
    return Looked(ask.number, ask.custom_id, outcome, text)


def text_of(outcome: Outcome) -> str:
    """What a body says, as far as it is a text."""
    body = outcome.body if isinstance(outcome.body, dict) else {}
    for choice in body.get("choices") or ():
        message = choice.get("message") or {}
        return str(message.get("content") or choice.get("text") or "")
    if data := body.get("data"):
        return f"{len(data)} embeddings"
    if results := body.get("results"):
        return f"{len(results)} documents ranked"
    parts = [part.get("text", "") for item in body.get("output") or () for part in item.get("content") or ()]
    return "".join(parts)
