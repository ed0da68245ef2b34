"""Many streams at once into one worker, against llama-server with as many slots; and how long a long prompt makes the
streams of others wait."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import httpx

from benchmarks.harness import Comparison, compare
from benchmarks.serving import NO_END, both, in_turn, stream
from rbee_remote.system.cores import usable_cores

STREAMS = (1, 4, 8)
TOKENS = 128
CTX = 1024
LONG_PROMPT = 2000
_TOPICS = ("a lighthouse", "the sea", "a clock", "two brothers", "a train", "the moon", "an orchard", "a letter")


def measure() -> list[Comparison]:
    return asyncio.run(_measure())


async def _measure() -> list[Comparison]:
    figures = []
    for streams in STREAMS:
        async with both(streams, CTX, usable_cores()) as peers:
            samples = await in_turn(peers, partial(_together, streams=streams))
        name = f"{streams} stream{'s' * (streams > 1)}, {TOKENS} tokens each"
        figures.append(compare(name, samples, "rbee", "llama-server", goal=1.0))
    async with both(2, 2 * LONG_PROMPT, usable_cores()) as peers:
        samples = await in_turn(peers, _stall, rounds=5)
    name = f"longest gap of a stream while a prompt of {LONG_PROMPT} tokens comes"
    return [*figures, compare(name, samples, "rbee", "llama-server", goal=1.0)]


async def _together(client: httpx.AsyncClient, number: int, streams: int) -> float:
    """Seconds until all streams are at their end. No prompt begins like another, in this round or before."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(stream(client, "/v1/completions", _body(number, at)) for at in range(streams)))
    if any(answer.tokens < 0.9 * TOKENS for answer in answers):  # a token can be a part of a character, without text
        raise RuntimeError(f"streams of {[answer.tokens for answer in answers]} tokens, not {TOKENS}")
    return time.perf_counter() - started


async def _stall(client: httpx.AsyncClient, number: int) -> float:
    """The longest gap between two tokens of a stream, in seconds, while another request's long prompt is computed."""
    talking = asyncio.create_task(stream(client, "/v1/completions", _body(number, 0) | {"max_tokens": 400}))
    await asyncio.sleep(0.5)
    words = " ".join(f"{number}{at}" for at in range(LONG_PROMPT // 5))
    await stream(client, "/v1/completions", _body(number, 1) | {"prompt": words, "max_tokens": 1})
    return (await talking).gap_s


def _body(number: int, at: int) -> dict[str, object]:
    prompt = f"{100 * number + at}. A story about {_TOPICS[at]}, told by somebody who was there, in many words."
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logit_bias": NO_END}
