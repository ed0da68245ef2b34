"""RBEE_FAILOVERS (200) answers whose worker, hive or connection is killed with SIGKILL at a random token, through a
gateway before two nodes: how many differ from the answer that nobody disturbed, and what the client waits for it.

Each stream has a model of its own, so that nothing but the blow can change what is said: tokens that a worker computes
in other company differ in their last bits. A run is an answer that was under way where something was killed, by the
gateway's own log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import secrets
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from benchmarks.fleet_testbed import Model, Served, served_models
from benchmarks.harness import Comparison
from benchmarks.hearing import WHOLE, Heard, hear
from benchmarks.serving import NO_END
from tests.testbed.node import ContainerNode

RUNS = int(os.environ.get("RBEE_FAILOVERS") or 200)
NODES, TOKENS = 2, 48
#: Two slots, for answers with two choices.
_LOAD = "slots = 2\nctx = 512"
_CALLED = ("", "Drones", "Queens", "Nectar")
MODELS = tuple(Model(f"bee-{number}", called, options=_LOAD) for number, called in enumerate(_CALLED))
#: What is killed, and by which shell command on the node.
WAYS = {
    "worker": "pkill -KILL -u bee -f 'zip worker'",
    "hive": "pkill -KILL -u bee -f 'zip hive'",
    "connection": "pkill -KILL -f 'sshd.*: bee'",
    "everything": "pkill -KILL -u bee",
}
WEIGHTS = (16, 1, 2, 1)
PATIENCE_S = 180.0
#: An answer that takes longer than this between two lines is seen by whoever reads it.
GAP_GOAL_S = 10.0

#: Model, node and number of the requests that workers have.
_OPEN = re.compile(r'^rbee_gateway_requests_open\{model="([^"]*)",node="([^"]*)"\} (\S+)$', re.MULTILINE)

_PROMPTS = ("Tell me about bees.", "Write a story about an old castle.")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "story": {"type": "string", "maxLength": 120}},
    "required": ["name", "story"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
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
    model: str
    form: str
    prompt: str

    @property
    def path(self) -> str:
        return "/v1/completions" if self.form == "completion" else "/v1/chat/completions"

    def body(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": self.prompt}]}
        if self.form == "completion":
            asked = {"prompt": self.prompt}
        more = {"max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **asked, **more, **FORMS[self.form]}


@dataclass(frozen=True)
class Blow:
    """lines: that the answer had before. late: whether it was over before the blow was."""

    way: str
    node: str
    lines: int
    late: bool = False


@dataclass
class Run:
    case: Case
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    heard: Heard = field(default_factory=Heard)
    blows: list[Blow] = field(default_factory=list)


class Shell:
    """Root's on a node, there before it is needed: an answer is over soon."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin
        assert process.stdout
        self._input, self._output = process.stdin, process.stdout
        self._lock = asyncio.Lock()

    @classmethod
    async def on(cls, node: ContainerNode) -> Shell:
        words = ("docker", "exec", "-i", node.id, "sh")
        return cls(await asyncio.create_subprocess_exec(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    async def run(self, command: str) -> None:
        async with self._lock:
            self._input.write(f"{command}; echo done\n".encode())
            await self._output.readline()

    async def close(self) -> None:
        self._input.close()
        await self._process.wait()


@dataclass
class Series:
    """under_way: the answer of each model. done: those that ended, with all that they had to go through.
    healing: while a node is struck and until it serves again, so that the other one is there. asking: while a model has
    a request, so that it never has two.
    """

    running: Served
    client: httpx.AsyncClient
    shells: dict[str, Shell]
    undisturbed: dict[Case, Heard] = field(default_factory=dict)
    under_way: dict[str, Run] = field(default_factory=dict)
    done: list[Run] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    counted: int = 0
    healing: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking: dict[str, asyncio.Lock] = field(default_factory=lambda: {model.name: asyncio.Lock() for model in MODELS})

    async def serves(self, model: Model, node: str) -> None:
        """Have a worker there, whatever it takes."""
        async with self.asking[model.name]:
            await _serves(self.client, f"{model.name}@{node}")


def measure() -> list[Comparison]:
    with served_models(NODES, MODELS) as running:
        series = asyncio.run(_measure(running))
        runs = _runs(series)
    return _figures(series, runs)


async def _measure(running: Served) -> Series:
    async with httpx.AsyncClient(base_url=running.address, timeout=PATIENCE_S) as client:
        shells = {name: await Shell.on(node) for name, node in running.nodes.items()}
        series = Series(running, client, shells)
        async with asyncio.TaskGroup() as tasks:
            for number, model in enumerate(MODELS):
                tasks.create_task(_stream(series, model, random.Random(number)))
        for shell in shells.values():
            await shell.close()
    return series


async def _stream(series: Series, model: Model, chance: random.Random) -> None:
    """One answer after the other of a model, each struck at a line that chance says."""
    cases = [Case(model.name, form, prompt) for prompt, form in itertools.product(_PROMPTS, FORMS)]
    chance.shuffle(cases)
    for case in itertools.cycle(cases):
        for node in series.running.nodes:
            await series.serves(model, node)
        if case not in series.undisturbed:
            series.undisturbed[case] = await _undisturbed(series, case)
        run, at = Run(case), chance.randrange(1, TOKENS - 4)
        if (await _struck(series, run, model, at, chance.choices(list(WAYS), WEIGHTS)[0])).blows:
            series.counted = len(_runs(series))
            print(f"{series.counted} of {RUNS}: {run.blows}", flush=True)
        if series.counted >= RUNS:
            return


async def _undisturbed(series: Series, case: Case) -> Heard:
    """What nobody has disturbed: again, where another stream's blow was for all of its node."""
    while True:
        run = await _struck(series, Run(case), None, 0, "")
        if not run.blows and run.heard.end == WHOLE:
            return run.heard


async def _struck(series: Series, run: Run, model: Model | None, at: int, way: str) -> Run:
    """Ask, and strike in `way` when `at` lines have come, if so many come; never where `model` is None."""
    due = asyncio.Event()

    def on_line(heard: Heard) -> None:
        run.heard = heard
        if len(heard.at) == at:
            due.set()

    async def strike() -> None:
        await due.wait()
        if model and (node := await _where(series.client, model.ref())):
            await _strike(series, node, way)

    striking = asyncio.create_task(strike())
    async with series.asking[run.case.model]:
        series.under_way[run.case.model] = run
        run.heard = await hear(series.client, run.case.path, run.case.body(), request_id=run.id, on_line=on_line)
    if not due.is_set():
        striking.cancel()
    await asyncio.wait([striking])
    del series.under_way[run.case.model]
    if model:
        series.done.append(run)
    return run


async def _strike(series: Series, node: str, way: str) -> None:
    if series.healing.locked():
        return
    await series.healing.acquire()
    struck = list(series.under_way.values())
    for run in struck:
        run.blows.append(Blow(way, node, len(run.heard.at)))
    await series.shells[node].run(WAYS[way])
    for run in struck:
        run.blows[-1] = replace(run.blows[-1], late=run.heard.is_said)
    series.struck[way] += 1
    try:
        await asyncio.gather(*(series.serves(model, node) for model in MODELS))
    finally:
        series.healing.release()


async def _where(client: httpx.AsyncClient, ref: str) -> str:
    """The node that has a request for this model, "" for none."""
    told = (await client.get("/metrics")).text
    return next((node for model, node, count in _OPEN.findall(told) if model == ref and float(count)), "")


async def _serves(client: httpx.AsyncClient, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    until = time.monotonic() + PATIENCE_S
    while (heard := await hear(client, "/v1/chat/completions", body)).end != WHOLE:
        if time.monotonic() > until:
            raise RuntimeError(f"{model} does not serve again: {heard.end}")
        await asyncio.sleep(0.2)


def _runs(series: Series) -> list[tuple[Run, str]]:
    """The answers that lost what they had, and what that was."""
    log = (series.running.rbee.home / "log" / "gateway.log").read_text().splitlines()
    told = {line["request"]: line for line in map(json.loads, log) if line["kind"] == "request"}
    found = []
    for run in series.done:
        line = told.get(run.id, {})
        lost = line.get("failovers") or run.heard.end != WHOLE
        # A worker that is gone shows as a failover. One whose connection or hive is gone may have gone on.
        ways = [blow.way for blow in run.blows if lost or (_is_spared(blow) and line.get("node") == blow.node)]
        if ways:
            found.append((run, ways[-1]))
    return found


def _is_spared(blow: Blow) -> bool:
    return blow.way in ("hive", "connection") and not blow.late


def _figures(series: Series, runs: list[tuple[Run, str]]) -> list[Comparison]:
    ends = Counter(run.heard.end for run, _ in runs)
    wrong = [run for run, _ in runs if run.heard.end == WHOLE and not _is_same(series, run)]
    others = [run for run in series.done if run not in [each for each, _ in runs]]
    gaps = [_added_s(run) for run, _ in runs]
    print(f"struck: {dict(series.struck)}; runs by what was lost: {dict(Counter(way for _, way in runs))}")
    print(f"runs by form: {dict(Counter(run.case.form for run, _ in runs))}; ends: {dict(ends)}")
    print(f"lines that were there: {sorted(run.blows[-1].lines for run, _ in runs)}")
    waits = sorted(zip(gaps, [way for _, way in runs], strict=True), reverse=True)
    print(f"others: {len(others)}; longest waits: {waits[:20]}")
    failed = [run for run, _ in runs if run.heard.end != WHOLE]
    for run in (wrong + failed)[:20]:
        undisturbed = series.undisturbed[run.case].said
        print(f"differs: {run.case} {run.id} {run.blows} {run.heard.said}\n  undisturbed: {undisturbed}")
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
    return round(max(waits, default=0.0) - statistics.median(waits or [0.0]), 3)
