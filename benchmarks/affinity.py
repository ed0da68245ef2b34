"""Sixteen chats over four workers, 1,500 tokens of history each: seconds to the first token of their next turns, where
the gateway chooses and where they go round."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Iterator

import httpx

from benchmarks.fleet_testbed import MODEL, Served, served
from benchmarks.harness import Comparison
from benchmarks.serving import stream

CHATS, WORKERS, TURNS, SLOTS = 16, 4, 2, 4
#: About 1,500 tokens.
_WORDS = 500


def measure() -> list[Comparison]:
    with served(WORKERS, "--slots", str(SLOTS), "--ctx", "2560") as running:
        chosen, round_robin = asyncio.run(_measure(running))
    ratio = statistics.median(chosen) / statistics.median(round_robin)
    return [
        Comparison(
            f"first token, {CHATS} chats over {WORKERS} workers", round(ratio, 3), 0.4, "x", "round robin",
            chosen, round_robin,
        )
    ]  # fmt: skip


async def _measure(running: Served) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each turn but the first, which nobody can have in memory."""
    nodes = itertools.cycle(running.nodes)
    async with httpx.AsyncClient(base_url=running.address, timeout=None) as client:
        chosen = await _chats(client, 0, itertools.repeat(MODEL))
        round_robin = await _chats(client, 1, (f"{MODEL}@{name}" for name in nodes))
    return tuple(chosen), tuple(round_robin)


async def _chats(client: httpx.AsyncClient, number: int, models: Iterator[str]) -> list[float]:
    histories = [[_story(number, chat)] for chat in range(CHATS)]
    seconds: list[float] = []
    for turn in range(TURNS):
        # As people write: not one after the other, nor all at once. The order is another in each turn.
        order = sorted(range(CHATS), key=lambda chat: (chat * 7 + turn * 5) % CHATS)
        for pair in (order[at : at + 2] for at in range(0, CHATS, 2)):
            answers = [_turn(client, histories[chat], next(models), turn) for chat in pair]
            seconds += await asyncio.gather(*answers) if turn else [0.0 for _ in await asyncio.gather(*answers)]
    return [each for each in seconds if each]


async def _turn(client: httpx.AsyncClient, history: list[dict[str, str]], model: str, turn: int) -> float:
    body = {"model": model, "messages": history, "max_tokens": 4, "temperature": 0}
    answer = await stream(client, "/v1/chat/completions", body)
    history += [
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": f"And what about number {turn}?"},
    ]
    return round(answer.first_s, 5)


def _story(number: int, chat: int) -> dict[str, str]:
    story = " ".join(str((number * 31 + chat + 3) * word % 97) for word in range(_WORDS))
    return {"role": "user", "content": f"Chat {number}-{chat}: {story}"}
