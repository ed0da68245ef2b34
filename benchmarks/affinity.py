"""Sixteen chats over four workers, 1,500 tokens of history each: seconds to the first token of their next turns, where
the gateway chooses and where they go round.

The same chats go on in both ways, in turn: a chat's history lies in the slot that had it last, whoever chose that one,
and the four workers have just as many slots as there are chats. Each turn takes the chats in another order. They ask
one at a time: the workers share this machine's processors, and two that compute at once would measure those.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.fleet_testbed import MODEL, Served, served
from benchmarks.harness import Comparison
from benchmarks.serving import stream

CHATS, WORKERS, SLOTS, HISTORY = 16, 4, 4, 1500
#: After each chat's first turn, which nobody can have in memory.
TURNS = ("rbee", "round robin", "rbee")
#: Two tokens and a space each.
_WORDS = 520


@dataclass(frozen=True, slots=True)
class Turn:
    """Of all chats. first_s: of each. most: how many one worker took. prompt, cached: tokens of all."""

    first_s: tuple[float, ...]
    most: int
    prompt: int
    cached: int


def measure() -> list[Comparison]:
    with served(WORKERS, "--slots", str(SLOTS), "--ctx", "2560") as running:
        turns = asyncio.run(_measure(running))
    assert turns[0].prompt >= CHATS * HISTORY, f"{turns[0].prompt} tokens"
    ours, theirs = ([each for each, way in zip(turns[1:], TURNS, strict=True) if way == name] for name in TURNS[:2])
    chosen, round_robin = (tuple(s for turn in side for s in turn.first_s) for side in (ours, theirs))
    ratio = statistics.median(chosen) / statistics.median(round_robin)
    most = max(turn.most for turn in (turns[0], *ours))
    return [
        Comparison(
            f"first token, {CHATS} chats over {WORKERS} workers", round(ratio, 3), 0.4, "x", "round robin",
            chosen, round_robin,
        ),
        Comparison(
            "tokens of prompts that were cached", _cached(ours), 100, "%", "round robin", (_cached(ours),),
            (_cached(theirs),), least=90, samples_in="%",
        ),
        Comparison("chats of the worker with most, against its share", most * WORKERS / CHATS, 1.25),
    ]  # fmt: skip


async def _measure(running: Served) -> list[Turn]:
    nodes = itertools.cycle(running.nodes)
    ways = {"rbee": itertools.repeat(MODEL), "round robin": (f"{MODEL}@{name}" for name in nodes)}
    histories = [[_story(chat)] for chat in range(CHATS)]
    turns = []
    async with httpx.AsyncClient(base_url=running.address, timeout=None) as client:
        for number, way in enumerate(("rbee", *TURNS)):
            seconds = await _turn(client, histories, ways[way], number)
            turns.append(_from_log(running, tuple(seconds)))
            print(f"turn {number} by {way}: {statistics.median(seconds):.2f} s, {turns[-1].cached} cached", flush=True)
    return turns


async def _turn(
    client: httpx.AsyncClient, histories: list[list[dict[str, str]]], models: Iterator[str], number: int
) -> list[float]:
    """Seconds to each chat's first token."""
    seconds = []
    for chat in random.Random(number).sample(range(CHATS), CHATS):
        body = {"model": next(models), "messages": histories[chat], "max_tokens": 4, "temperature": 0}
        answer = await stream(client, "/v1/chat/completions", body)
        seconds.append(round(answer.first_s, 5))
        histories[chat] += [
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": f"And what about number {number}?"},
        ]
    return seconds


def _from_log(running: Served, first_s: tuple[float, ...]) -> Turn:
    """The turn that is just over, as the gateway's own log tells it."""
    lines = map(json.loads, (running.rbee.home / "log" / "gateway.log").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "request"][-CHATS:]
    most = max(Counter(line["node"] for line in last).values())
    return Turn(first_s, most, *(sum(line.get(name, 0) for line in last) for name in ("tokens_in", "tokens_cached")))


def _cached(turns: list[Turn]) -> float:
    return round(100 * sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns), 1)


def _story(chat: int) -> dict[str, str]:
    story = " ".join(str((chat + 3) * word % 97) for word in range(_WORDS))
    return {"role": "user", "content": f"Chat {chat}: {story}"}
