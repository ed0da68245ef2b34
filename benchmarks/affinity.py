"""Sixteen chats over four workers, 1,500 tokens of history each: seconds to the first token of their next turns, where
the gateway chooses and where they go round.

The same chats go on in both ways, in turn: a chat's history lies in the slot that had it last, whoever chose that one,
and the four workers have just as many slots as there are chats. Each turn takes the chats in another order. They ask
one at a time: the workers share this machine's processors, and two that compute at once would measure those. Each
computes with one thread, and the model has a tenth of its layers, so that a prompt is computed within seconds; with
all of them what a cache saves would be more, and what the gateway adds the same.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.gateway import gateway
from benchmarks.harness import Comparison
from benchmarks.loopback_fleet import loopback_nodes
from benchmarks.serving import stream
from benchmarks.small_model import cut
from benchmarks.testbed import keeper
from tests.testbed import assets
from tests.testbed.cli import Rbee

CHATS, WORKERS, SLOTS, HISTORY = 16, 4, 4, 1500
#: After each chat's first turn, which nobody can have in memory.
TURNS = ("rbee", "round robin", "rbee")
LAYERS = 3
MODEL = "small"
#: Two tokens and a space each.
_WORDS = 560


@dataclass(frozen=True, slots=True)
class Turn:
    """Of all chats. first_s: of each. most: how many one worker took. prompt, cached: tokens of all."""

    first_s: tuple[float, ...]
    most: int
    prompt: int
    cached: int


def measure() -> list[Comparison]:
    with keeper() as rbee:
        turns = asyncio.run(_measure(rbee))
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


async def _measure(rbee: Rbee) -> list[Turn]:
    model = cut(assets.model(), rbee.home / "small.gguf", LAYERS)
    alias = f'[models.{MODEL}]\nmodel = "file:{model}"\n'
    words = ["--model", f"file:{model}", "--slots", str(SLOTS), "--ctx", "2560"]
    async with loopback_nodes(rbee, WORKERS, *words, python=_on_one_processor, extra=alias) as nodes:
        with gateway(rbee, "@far") as running:
            return await _turns(rbee, running.address, nodes)


def _on_one_processor(number: int) -> str:
    processors = sorted(os.sched_getaffinity(0))
    return f'exec taskset -c {processors[number % len(processors)]} "{sys.executable}" "$@"'


async def _turns(rbee: Rbee, address: str, nodes: tuple[str, ...]) -> list[Turn]:
    ways = {"rbee": itertools.repeat(MODEL), "round robin": (f"{MODEL}@{name}" for name in itertools.cycle(nodes))}
    histories = [[_story(chat)] for chat in range(CHATS)]
    turns = []
    async with httpx.AsyncClient(base_url=address, timeout=None) as client:
        for number, way in enumerate(("rbee", *TURNS)):
            seconds = await _turn(client, histories, ways[way], number)
            turns.append(_from_log(rbee, tuple(seconds)))
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


def _from_log(rbee: Rbee, first_s: tuple[float, ...]) -> Turn:
    """The turn that is just over, as the gateway's own log tells it."""
    lines = map(json.loads, (rbee.home / "log" / "gateway.log").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "request"][-CHATS:]
    most = max(Counter(line["node"] for line in last).values())
    return Turn(first_s, most, *(sum(line.get(name, 0) for line in last) for name in ("tokens_in", "tokens_cached")))


def _cached(turns: list[Turn]) -> float:
    return round(100 * sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns), 1)


def _story(chat: int) -> dict[str, str]:
    story = " ".join(str((chat + 3) * word % 97) for word in range(_WORDS))
    return {"role": "user", "content": f"Chat {chat}: {story}"}
