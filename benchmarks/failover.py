"""RBEE_FAILOVERS (200) answers whose worker, hive or connection is killed with SIGKILL at a random token, through a
gateway before two nodes: how many differ from the answer that nobody disturbed, and what the client waits for it.

Eight streams run all the time, in all forms that an answer can have. A run is an answer that was under way on the node
which was struck, by the gateway's own log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.fleet_testbed import Model, Served, served_models
from benchmarks.harness import Comparison
from benchmarks.hearing import WHOLE, Heard, hear
from benchmarks.serving import NO_END

RUNS = int(os.environ.get("RBEE_FAILOVERS") or 200)
STREAMS, NODES, TOKENS = 8, 2, 48
#: As many slots as all streams can take, some with two answers, so that none has to wait when one node has them all.
MODEL = Model("bee", options=f"slots = {2 * STREAMS}\nctx = 512")
#: What is killed, and by which shell command on the node.
WAYS = {
    "worker": "pkill -KILL -u bee -f 'zip worker'",
    "hive": "pkill -KILL -u bee -f 'zip hive'",
    "connection": "pkill -KILL -f 'sshd.*: bee'",
    "everything": "pkill -KILL -u bee",
}
WEIGHTS = (6, 1, 2, 1)
PATIENCE_S = 120.0
#: An answer that takes longer than this between two lines is seen by whoever reads it.
GAP_GOAL_S = 10.0

_PROMPTS = ("Tell me about bees.", "Write a story about an old castle.", "Explain the sea to a child.")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "story": {"type": "string", "maxLength": 120}},
    "required": ["name", "story"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}, "why": {"type": "string", "maxLength": 60}},
            "required": ["city", "why"],
        },
    },
}
_SEEDED: dict[str, Any] = {"temperature": 0.8, "seed": 7, "logit_bias": NO_END}
#: By form of an answer: path, and what its body has beside the prompt.
FORMS: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0, "logit_bias": NO_END},
    "seed": _SEEDED,
    "two choices": {**_SEEDED, "n": 2},
    "probabilities": {**_SEEDED, "logprobs": True, "top_logprobs": 2},
    "schema": {
        "temperature": 0.8,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "story", "schema": _SCHEMA}},
    },
    "tool call": {"temperature": 0.8, "seed": 7, "tools": [_TOOL], "tool_choice": "required"},
    "stop string": {**_SEEDED, "stop": ["\n\n", " honey", " king"]},
    "completion": {"temperature": 0, "logit_bias": NO_END},
}


@dataclass(frozen=True)
class Case:
    form: str
    prompt: str

    @property
    def path(self) -> str:
        return "/v1/completions" if self.form == "completion" else "/v1/chat/completions"

    def body(self) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": self.prompt}]}
        if self.form == "completion":
            asked = {"prompt": self.prompt}
        more = {"max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        return {"model": MODEL.name, **asked, **more, **FORMS[self.form]}


@dataclass
class Run:
    """An answer. strikes: what was done, and to which node, while it was under way. lines: that came before."""

    case: Case
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    heard: Heard = field(default_factory=Heard)
    struck: list[tuple[str, str, int]] = field(default_factory=list)


@dataclass
class Series:
    """under_way: answers that have begun. done: those that ended, with all that they had to go through."""

    undisturbed: dict[Case, Heard] = field(default_factory=dict)
    under_way: dict[str, Run] = field(default_factory=dict)
    done: list[Run] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    counted: int = 0
    line: asyncio.Event = field(default_factory=asyncio.Event)


def measure() -> list[Comparison]:
    with served_models(NODES, [MODEL]) as running:
        series = asyncio.run(_measure(running))
        runs = _runs(running, series)
    return _figures(series, runs)


async def _measure(running: Served) -> Series:
    series = Series()
    cases = [Case(form, prompt) for form, prompt in itertools.product(FORMS, _PROMPTS)]
    async with httpx.AsyncClient(base_url=running.address, timeout=PATIENCE_S) as client:
        for case in cases:
            series.undisturbed[case] = await hear(client, case.path, case.body())
        async with asyncio.TaskGroup() as tasks:
            order = itertools.cycle(random.Random(0).sample(cases, len(cases)))
            for _ in range(STREAMS):
                tasks.create_task(_stream(client, series, order))
            tasks.create_task(_strike(running, client, series))
    return series


async def _stream(client: httpx.AsyncClient, series: Series, order: Iterator[Case]) -> None:
    def on_line(heard: Heard) -> None:
        run.heard = heard
        series.line.set()

    while series.counted < RUNS:
        run = Run(next(order))
        series.under_way[run.id] = run
        run.heard = await hear(client, run.case.path, run.case.body(), request_id=run.id, on_line=on_line)
        series.done.append(series.under_way.pop(run.id))


async def _strike(running: Served, client: httpx.AsyncClient, series: Series) -> None:
    """One node after the other, each when it has been seen to answer, at a line of an answer that is due by chance."""
    chance = random.Random(0)
    for node in itertools.cycle(running.nodes.values()):
        await _serves(client, node.name)
        for _ in range(chance.randrange(10, 60)):
            series.line.clear()
            await series.line.wait()
        way = chance.choices(list(WAYS), WEIGHTS)[0]
        for run in series.under_way.values():
            run.struck.append((way, node.name, len(run.heard.at)))
        await asyncio.to_thread(node.try_exec, WAYS[way])
        series.struck[way] += 1
        series.counted = len(_runs(running, series))
        print(f"{series.counted} of {RUNS}", flush=True)
        if series.counted >= RUNS:
            return


async def _serves(client: httpx.AsyncClient, node: str) -> None:
    """Have a worker there, whatever it takes."""
    body = {"model": f"{MODEL.name}@{node}", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    until = time.monotonic() + PATIENCE_S
    while (heard := await hear(client, "/v1/chat/completions", body)).end != WHOLE:
        if time.monotonic() > until:
            raise RuntimeError(f"{node} does not serve again: {heard.end}")
        await asyncio.sleep(0.2)


def _runs(running: Served, series: Series) -> list[tuple[Run, str]]:
    """The answers that lost what they had, and what that was."""
    log = (running.rbee.home / "log" / "gateway.log").read_text().splitlines()
    told = {line["request"]: line for line in map(json.loads, log) if line["kind"] == "request"}
    found = []
    for run in series.done:
        line = told.get(run.id, {})
        ways = [way for way, node, _ in run.struck if line.get("failovers") or line.get("node") == node]
        if ways:
            found.append((run, ways[-1]))
    return found


def _figures(series: Series, runs: list[tuple[Run, str]]) -> list[Comparison]:
    ends = Counter(run.heard.end for run, _ in runs)
    wrong = [run for run, _ in runs if run.heard.end == WHOLE and not _is_same(series, run)]
    others = [run for run in series.done if run not in [each for each, _ in runs]]
    gaps = [_added_s(run) for run, _ in runs if run.heard.end == WHOLE]
    print(f"struck: {dict(series.struck)}; runs by what was lost: {dict(Counter(way for _, way in runs))}")
    print(f"runs by form: {dict(Counter(run.case.form for run, _ in runs))}; ends: {dict(ends)}")
    print(f"lines that were there: {sorted(run.struck[-1][2] for run, _ in runs)}")
    for run in wrong[:10]:
        print(f"differs: {run}\n  undisturbed: {series.undisturbed[run.case].said}")
    return [
        Comparison("answers that lost their worker, hive or connection", len(runs), goal=10**9, least=RUNS, unit=""),
        *(
            Comparison(f"of them: {name}", sum(run.case.form == name for run, _ in runs), 10**9, "", least=1)
            for name in FORMS
        ),
        Comparison("of them: with another text", len(wrong), goal=0, unit=""),
        Comparison("of them: ended with an error", len(runs) - ends[WHOLE], goal=0, unit=""),
        Comparison(
            "answers of the others that differ or failed", sum(not _is_same(series, run) for run in others), 0, ""
        ),
        Comparison("added wait, p50", round(statistics.median(gaps), 3), GAP_GOAL_S / 2, "s", ours=tuple(gaps)),
        Comparison("added wait, longest", max(gaps), GAP_GOAL_S, "s"),
    ]


def _is_same(series: Series, run: Run) -> bool:
    return run.heard.said == series.undisturbed[run.case].said


def _added_s(run: Run) -> float:
    """Seconds of the longest wait for a line, without what a line takes otherwise."""
    waits = [after - before for before, after in itertools.pairwise(run.heard.at)]
    return round(max(waits) - statistics.median(waits), 3)
