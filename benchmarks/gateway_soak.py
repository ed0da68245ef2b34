"""A gateway before three nodes under eight streams, for RBEE_SOAK_MINUTES (10), while workers and hives are killed,
connections cut, nodes paused, lost, taken out of the inventory and put back. Each node has one model of its own, and
all of them have two others.

Each answer is compared with the one that the same model gave when nobody disturbed it: it is that one, or its beginning
where the client is told, within the stream or by a status, that it is not whole. Afterwards the gateway has the tasks,
descriptors and threads, and each node the processes, that they had before.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks.fleet_testbed import Model, Served, inventory, load_all, served_models
from benchmarks.harness import Comparison
from benchmarks.hearing import WHOLE, Choice, Heard, hear
from benchmarks.serving import NO_END
from tests.testbed.node import ContainerNode

MINUTES = float(os.environ.get("RBEE_SOAK_MINUTES") or 10)
STREAMS, NODES, TOKENS = 8, 3, 60
#: One slot: tokens that a worker computes in other company differ in their last bits.
_LOAD = "slots = 1\nctx = 512"
MODELS = (
    Model("shared-a", options=_LOAD),
    Model("shared-b", "Beebee", options=_LOAD),
    Model("own-0", "Drones", "n0", _LOAD),
    Model("own-1", "Queens", "n1", _LOAD),
    Model("own-2", "Nectar", "n2", _LOAD),
)
_PROMPTS = ("What is your name, and who made you?", "Tell me about bees.", "Write a story about an old castle.")
_WAYS_TO_SAMPLE = ({"temperature": 0, "seed": 1}, {"temperature": 0.8, "seed": 7})
#: Between two things that go wrong.
EVERY_S = 8.0
#: A node that is paused comes back while its answers are still waited for, one that is lost does not.
PAUSED_S, LOST_S = 15.0, 45.0
SETTLE_S = 20.0
WAYS = ("kill", "kill", "hive", "cut", "cut", "pause", "remove", "lost")


@dataclass(frozen=True)
class Question:
    model: str
    prompt: str
    sampling: int

    def body(self, tokens: int = TOKENS, *, stream: bool = True) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": tokens,
            "stream": stream,
            "logprobs": True,
            "logit_bias": NO_END,
            **_WAYS_TO_SAMPLE[self.sampling],
        }


@dataclass
class Tally:
    """undisturbed: answers of TOKENS tokens. ends: answers by how they ended, wrong: what is in none that may come."""

    undisturbed: dict[Question, Choice] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """Of the gateway its tasks, descriptors, threads and children; of each node rbee's and sshd's processes by kind."""

    tasks: Counter[str]
    descriptors: int
    threads: int
    children: int
    memory_mb: float
    nodes: dict[str, Counter[str]]


def measure() -> list[Comparison]:
    tally = Tally()
    with served_models(NODES, MODELS) as running:
        asyncio.run(_undisturbed(running, tally))
        time.sleep(SETTLE_S)
        before = _state(running)
        asyncio.run(_load(running, tally))
        for name in running.nodes:
            load_all(running.rbee, name, MODELS)
        time.sleep(SETTLE_S)
        after = _state(running)
    print(f"struck: {dict(tally.struck)}; answers: {dict(tally.ends)}; by model: {dict(tally.by_model)}")
    print(f"before: {before}\nafter: {after}")
    for wrong in tally.wrong[:20]:
        print(wrong)
    return _figures(tally, before, after)


def _figures(tally: Tally, before: State, after: State) -> list[Comparison]:
    answers = sum(tally.ends.values())
    whole = sum(count for end, count in tally.ends.items() if end.startswith(WHOLE))
    processes = sum((after.nodes[name] - before.nodes[name]).total() for name in before.nodes)
    return [
        Comparison("answers", answers, goal=10**9, least=1, unit=""),
        *(Comparison(f"struck: {way}", tally.struck[way], goal=10**9, unit="") for way in dict.fromkeys(WAYS)),
        Comparison("answers that are wrong, doubled or without an end", len(tally.wrong), goal=0, unit=""),
        Comparison("failures that the client was told", answers - whole, goal=10**9, unit=""),
        Comparison("tasks left over", (after.tasks - before.tasks).total(), goal=0, unit=""),
        Comparison("descriptors left over", after.descriptors - before.descriptors, 0, "", least=-1000),
        Comparison("threads left over", after.threads - before.threads, 4, "", least=-1000),
        Comparison("child processes left over", after.children - before.children, 0, "", least=-1000),
        Comparison("processes left over on the nodes", processes, goal=0, unit=""),
        Comparison("memory", round(after.memory_mb - before.memory_mb, 1), 40, "MB", least=-1000),
    ]


def _state(running: Served) -> State:
    gateway = psutil.Process(running.process.pid)
    return State(
        Counter(running.tasks()),
        gateway.num_fds(),
        gateway.num_threads(),
        len(gateway.children(recursive=True)),
        gateway.memory_info().rss / 1e6,
        {name: _processes(node) for name, node in running.nodes.items()},
    )


def _processes(node: ContainerNode) -> Counter[str]:
    """By what they do: `worker`, …; sessions of sshd, whose number is that of connections; descriptors of the hive."""
    kinds = Counter(args.split(".zip ", 1)[1].split()[0] for _, args in node.processes() if ".zip " in args)
    kinds["sshd sessions"] = int(node.try_exec("pgrep -c -f 'sshd.*: bee'")[1] or 0)
    kinds["sockets"] = len(node.sockets())
    kinds["zombies"] = int(node.try_exec("ps -e -o stat= | grep -c Z")[1] or 0)
    for hive in node.pids("hive"):
        kinds["descriptors of the hive"] += int(node.try_exec(f"ls /proc/{hive}/fd | wc -l")[1])
    return kinds


async def _undisturbed(running: Served, tally: Tally) -> None:
    questions = [
        Question(model.name, prompt, sampling)
        for model in MODELS
        for prompt in _PROMPTS
        for sampling in range(len(_WAYS_TO_SAMPLE))
    ]
    places = asyncio.Semaphore(4)

    async def ask(client: httpx.AsyncClient, question: Question) -> None:
        async with places:
            heard = await hear(client, "/v1/chat/completions", question.body())
        if heard.end != WHOLE or len(heard.choices[0].tokens) != TOKENS:
            raise RuntimeError(f"{question}: {heard}")
        tally.undisturbed[question] = heard.choices[0]

    async with httpx.AsyncClient(base_url=running.address, timeout=600) as client, asyncio.TaskGroup() as tasks:
        for question in questions:
            tasks.create_task(ask(client, question))


async def _load(running: Served, tally: Tally) -> None:
    until = time.monotonic() + 60 * MINUTES
    async with httpx.AsyncClient(base_url=running.address, timeout=300) as client, asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(_stream(client, random.Random(number), until, tally))
        tasks.create_task(asyncio.to_thread(_strike, running, until, tally))


async def _stream(client: httpx.AsyncClient, chance: random.Random, until: float, tally: Tally) -> None:
    questions = list(tally.undisturbed)
    while time.monotonic() < until:
        question, tokens = chance.choice(questions), chance.randrange(1, TOKENS + 1)
        stream = chance.random() < 0.8
        heard = await hear(client, "/v1/chat/completions", question.body(tokens, stream=stream))
        tally.ends[f"{heard.end}{'' if stream else ', no stream'}"] += 1
        tally.by_model[question.model] += 1
        if why := _wrong(heard, tally.undisturbed[question], tokens):
            tally.wrong.append(f"{question}, {tokens} tokens: {why}")
        if heard.end.startswith("status"):  # as clients do
            await asyncio.sleep(1.0)


def _wrong(heard: Heard, undisturbed: Choice, tokens: int) -> str:
    """What is wrong with an answer, "" for nothing."""
    said = heard.choices.get(0, Choice())
    if not heard.is_said:
        return heard.end
    words, right = [word for word, _ in said.tokens], [word for word, _ in undisturbed.tokens]
    if heard.end == WHOLE and (len(words), said.finish) != (tokens, "length"):
        return f"{len(words)} tokens, ended by {said.finish!r}"
    if words != right[: len(words)]:
        return f"said {words}, which is {right[: len(words)]}"
    if not undisturbed.text.startswith(said.text.rstrip("�")):
        return f"said {said.text!r}, which is {undisturbed.text!r}"
    return "" if said.text.startswith("".join(words).split("�", 1)[0]) else f"{said.text!r} is not {words}"


def _strike(running: Served, until: float, tally: Tally) -> None:
    chance = random.Random(0)
    ways: list[str] = []
    while True:
        time.sleep(EVERY_S)
        ways = ways or chance.sample(WAYS, len(WAYS))
        if time.monotonic() + LOST_S > until:
            return
        tally.struck[way := ways.pop()] += 1
        _strike_once(running, way, chance.choice(list(running.nodes.values())))


def _strike_once(running: Served, way: str, node: ContainerNode) -> None:
    """And whole again when this ends, but for what the gateway has to start again itself."""
    print(f"{time.strftime('%X')} {way} {node.name}", flush=True)
    match way:
        case "kill":
            node.try_exec("pkill -KILL -u bee -f 'zip worker'")
        case "hive":
            node.try_exec("pkill -KILL -u bee -f 'zip hive'")
        case "cut":
            node.try_exec("pkill -KILL -f 'sshd.*: bee'")
        case "remove":
            others = [each for each in running.nodes.values() if each is not node]
            running.rbee.inventory.write_text(inventory(others, MODELS))
            time.sleep(PAUSED_S)
            running.rbee.inventory.write_text(inventory(running.nodes.values(), MODELS))
        case _:
            node.freeze()
            time.sleep(PAUSED_S if way == "pause" else LOST_S)
            node.thaw()
