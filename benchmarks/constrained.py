"""What a JSON schema costs: answers of as many tokens with one and without, and llama-server's with the same one."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import httpx

from benchmarks.harness import Comparison, compare
from benchmarks.serving import NO_END, both, in_turn, stream
from rbee_remote.system.cores import usable_cores

STREAMS = (1, 8)
TOKENS = 128
CTX = 512
#: 0.97 times the tokens per second.
GOAL = 1 / 0.97
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "home": {"enum": ["town", "village", "farm"]},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 1, "maxItems": 4},
    },
    "required": ["name", "age", "home", "likes"],
    "additionalProperties": False,
}
#: Longer than any answer here, so that each has as many tokens as it may have.
SCHEMA = {"type": "array", "items": _PERSON, "minItems": 100}
_TOPICS = ("a lighthouse", "the sea", "a clock", "two brothers", "a train", "the moon", "an orchard", "a letter")

Side = tuple[httpx.AsyncClient, bool]


def measure() -> list[Comparison]:
    return asyncio.run(_measure())


async def _measure() -> list[Comparison]:
    figures = []
    for streams in STREAMS:
        async with both(streams, CTX, usable_cores()) as peers:
            sides: dict[str, Side] = {
                "with a schema": (peers["rbee"], True),
                "without": (peers["rbee"], False),
                "llama-server": (peers["llama-server"], True),
            }
            samples = await in_turn(sides, partial(_together, streams=streams), 7)
        name = f"{streams} stream{'s' * (streams > 1)}, {TOKENS} tokens each, with a schema"
        figures.append(compare(name, samples, "with a schema", "without", goal=GOAL))
        figures.append(compare(name, samples, "with a schema", "llama-server", goal=1.0))
    return figures


async def _together(side: Side, number: int, streams: int) -> float:
    """Seconds until all streams are at their end."""
    client, constrained = side
    started = time.perf_counter()
    bodies = [_body(number, at, constrained=constrained) for at in range(streams)]
    answers = await asyncio.gather(*(stream(client, "/v1/chat/completions", body) for body in bodies))
    if any(answer.tokens < 0.9 * TOKENS for answer in answers):  # a token can be a part of a character, without text
        raise RuntimeError(f"streams of {[answer.tokens for answer in answers]} tokens, not {TOKENS}")
    return time.perf_counter() - started


def _body(number: int, at: int, *, constrained: bool) -> dict[str, object]:
    question = f"{100 * number + at}. Invent many people in a story about {_TOPICS[at]}, as JSON."
    form = {"type": "json_schema", "json_schema": {"name": "people", "schema": SCHEMA}}
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logit_bias": NO_END,
        **({"response_format": form} if constrained else {}),
    }
