"""The fifth turn of a chat whose history has 1,500 tokens: seconds to its first token, against llama-server."""

from __future__ import annotations

import asyncio

import httpx

from benchmarks.harness import Comparison, compare
from benchmarks.serving import both, in_turn, stream
from rbee_remote.system.cores import usable_cores

TURNS = 4
#: About 370 tokens of a turn.
_WORDS = 124


def measure() -> list[Comparison]:
    return asyncio.run(_measure())


async def _measure() -> list[Comparison]:
    async with both(4, 2048, usable_cores()) as peers:
        samples = await in_turn(peers, _fifth_turn)
    return [compare("first token of turn 5, 1,500 tokens of history", samples, "rbee", "llama-server", goal=1.0)]


async def _fifth_turn(client: httpx.AsyncClient, number: int) -> float:
    """Four turns to fill the cache, then the one that counts. Each round is another chat."""
    history: list[dict[str, str]] = []
    for turn in range(TURNS):
        story = " ".join(f"{(number + 1) * (turn + 3) * word % 97}" for word in range(_WORDS))
        history.append({"role": "user", "content": f"Chat {number}, turn {turn}: {story}"})
        await stream(client, "/v1/chat/completions", _body(history))
        history.append({"role": "assistant", "content": "I see."})
    history.append({"role": "user", "content": "Which number came first?"})
    return (await stream(client, "/v1/chat/completions", _body(history))).first_s


def _body(messages: list[dict[str, str]]) -> dict[str, object]:
    return {"messages": messages, "max_tokens": 4, "temperature": 0}
