"""How fast a model is on the GPU, against llama.cpp's own programs of the same build; and what it takes of memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from benchmarks.gpu import memory, model
from benchmarks.gpu.node import NAME, GpuNode, gpu_node
from benchmarks.gpu.work import Work
from benchmarks.harness import Comparison, in_turn
from benchmarks.llama_cpp import llama_bench
from benchmarks.serving import both, worker
from benchmarks.serving import in_turn as in_turn_async
from rbee_remote.system.cores import usable_cores
from tests.testbed.cli import Rbee

PROMPT, GENERATED = 512, 128
ROUNDS = 5
STREAMS, CTX = 32, 1024
ONE_STREAM, MANY_STREAMS = 0.97, 1.0
#: No figure of a speed is too good.
NO_LIMIT = 1000.0
#: What waking up and asking take beside the step itself, in ms.
ASKING_MS = 5.0
#: Times that a client hangs up, and the tokens that it has read by then.
HANG_UPS, READ = 9, 16
_numbers = itertools.count(100_000)


@dataclass(frozen=True, slots=True)
class Case:
    """How a model is loaded. ctx: tokens per slot."""

    ctx: int
    slots: int
    kv_type: str = "f16"

    @property
    def name(self) -> str:
        return f"{self.slots} x {self.ctx} tokens in {self.kv_type}"

    @property
    def words(self) -> tuple[str, ...]:
        return "--ctx", str(self.ctx), "--slots", str(self.slots), "--kv-type", self.kv_type


CASES = (Case(2048, 1), Case(4096, 4), Case(4096, 8, "q8_0"), Case(CTX, STREAMS))


def parts(work: Work) -> tuple[Iterator[Comparison], ...]:
    """Each begins when it is asked for its first figure, on a node of its own or on none: what one meets leaves the
    others as they are."""
    return _on_node(work, _one_stream), _on_node(work, _memory), _many_streams(work), _hanging_up(work)


def _on_node(work: Work, measure: Callable[[Rbee, GpuNode], Iterator[Comparison]]) -> Iterator[Comparison]:
    with gpu_node(work) as node, node.keeper() as rbee:
        rbee("infer", "--node", NAME, "--max-tokens", "1", "Hello")  # sets the node up and loads the model
        yield from measure(rbee, node)


def each(*measures: Callable[[], Sequence[Comparison]]) -> Iterator[Comparison]:
    """What they find on one node, whatever ends one of them. Raises RuntimeError at the end, where one did."""
    failed = 0
    for measure in measures:
        try:
            found = measure()
        except Exception:
            traceback.print_exc()
            failed += 1
        else:
            yield from found
    if failed:
        raise RuntimeError(f"{failed} of {len(measures)} comparisons failed; why stands above")


def faster(name: str, samples: Mapping[str, tuple[float, ...]], least: float) -> Comparison:
    """Of tokens per second: those of "rbee" over those of the other."""
    (against,) = (side for side in samples if side != "rbee")
    ratio = round(statistics.median(samples["rbee"]) / statistics.median(samples[against]), 3)
    return Comparison(
        name, ratio, NO_LIMIT, "x", against, samples["rbee"], samples[against], least=least, samples_in="tokens/s"
    )


# --- one stream, and llama-bench ---


def _one_stream(rbee: Rbee, node: GpuNode) -> Iterator[Comparison]:
    yield from each(
        lambda: [_against_bench(f"pp{PROMPT}, as the worker measures itself", rbee, node.work, PROMPT, 0)],
        lambda: [_against_bench(f"tg{GENERATED}, as the worker measures itself", rbee, node.work, 0, GENERATED)],
        lambda: [_infer_against_bench(rbee, node.work)],
    )


def _against_bench(name: str, rbee: Rbee, work: Work, prompt: int, generated: int) -> Comparison:
    def ours() -> float:
        words = ("--prompt", str(prompt), "--gen", str(generated), "--repetitions", "1")
        *_, (test,) = rbee("bench", NAME, "--json", *words).lines()
        return float(test["tokens_per_s"])

    return faster(name, in_turn({"rbee": ours, "llama-bench": partial(_theirs, work, prompt, generated)}), ONE_STREAM)


def _infer_against_bench(rbee: Rbee, work: Work) -> Comparison:
    def ours() -> float:
        words = ("--json", "--raw", "--temperature", "0", "--max-tokens", str(GENERATED))
        finished = rbee("infer", "--node", NAME, *words, f"{next(_numbers)}. Once upon a time").lines()[-1]
        if finished["usage"]["completion_tokens"] != GENERATED:
            raise RuntimeError(f"{finished['usage']['completion_tokens']} tokens came, not {GENERATED}")
        return float(finished["timings"]["tokens_per_s"])

    samples = in_turn({"rbee": ours, "llama-bench": partial(_theirs, work, 0, GENERATED)})
    return faster(f"tg{GENERATED}, as `rbee infer` gets it over SSH", samples, ONE_STREAM)


def _theirs(work: Work, prompt: int, generated: int) -> float:
    speeds = llama_bench(work.large, prompt, generated, 1, usable_cores(), backend=work.backend)
    ((speed,),) = speeds.values()
    return speed


# --- memory ---


def _memory(rbee: Rbee, node: GpuNode) -> Iterator[Comparison]:
    _stop_workers(rbee)
    before = memory.settled_mb(node, 0.0)  # what the worker before had is free by then
    yield from each(*(partial(_memory_of, case, before, rbee, node) for case in CASES))


def _memory_of(case: Case, before: float, rbee: Rbee, node: GpuNode) -> list[Comparison]:
    """What was said that a worker takes, against what it took; and what its end left. before: MB without one."""
    (shown,) = rbee("models", "show", f"file:{node.work.large}", "--node", NAME, "--json", *case.words).json()["models"]
    (point,) = shown["points"]
    try:
        rbee("infer", "--node", NAME, *case.words, "--max-tokens", "8", "--raw", "word " * 600)
        real = round(memory.used_mb(node) - before, 1)
    finally:
        _stop_workers(rbee)
    left = round(memory.settled_mb(node, before + 1) - before, 1)
    ours = float(point["needed_mb"])
    ratio = round(ours / real, 3)
    return [
        Comparison(case.name, ratio, 1.1, "x", "taken", (ours,), (real,), least=1.0, samples_in="MB"),
        Comparison(f"{case.name}, left after the worker's end", max(0.0, left), 1.0, "MB"),
    ]


def _stop_workers(rbee: Rbee) -> None:
    for info in rbee("workers", "list", "--json").json():
        rbee("workers", "stop", info["id"])


# --- many streams, and llama-server ---


def _many_streams(work: Work) -> Iterator[Comparison]:
    yield asyncio.run(_streams(work, model.endings(work.large)))


async def _streams(work: Work, endings: tuple[int, ...]) -> Comparison:
    async with both(STREAMS, CTX, usable_cores(), work.backend) as peers:

        async def together(client: httpx.AsyncClient, number: int) -> float:
            del number
            began = time.perf_counter()
            counts = await asyncio.gather(*(_tokens(client, GENERATED, endings) for _ in range(STREAMS)))
            return sum(counts) / (time.perf_counter() - began)

        samples = await in_turn_async(peers, together, ROUNDS)
    return faster(f"{STREAMS} streams of {GENERATED} tokens", samples, MANY_STREAMS)


async def _tokens(client: httpx.AsyncClient, tokens: int, endings: tuple[int, ...]) -> int:
    """Stream an answer to its end; how many tokens it had, which is not how many pieces of text came: some of a model
    of random weights are no whole character."""
    usage = None
    async with client.stream("POST", "/v1/completions", json=_body(tokens, endings)) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
    if not usage or usage["completion_tokens"] != tokens:
        raise RuntimeError(f"the answer has {usage}, not {tokens} tokens")
    return tokens


def _body(tokens: int, endings: tuple[int, ...]) -> dict[str, Any]:
    return {
        "prompt": f"{next(_numbers)}. A story about a bee, told by somebody who was there, in many words.",
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {str(token): -100 for token in endings},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# --- a client that hangs up ---


def _hanging_up(work: Work) -> Iterator[Comparison]:
    yield asyncio.run(_cancelled(work, model.endings(work.large)))


async def _cancelled(work: Work, endings: tuple[int, ...]) -> Comparison:
    """Until the slot of a client that hung up is free, against what one step takes."""
    async with worker(1, CTX, usable_cores(), work.backend) as client:
        found = [await _hang_up(client, endings) for _ in range(HANG_UPS)]
    freed, steps = (tuple(round(value, 2) for value in values) for values in zip(*found, strict=True))
    goal = round(statistics.median(steps) + ASKING_MS, 2)
    value = statistics.median(freed)
    name = "from hanging up until the slot is free"
    return Comparison(name, value, goal, "ms", "a step", freed, steps, samples_in="ms")


async def _hang_up(client: httpx.AsyncClient, endings: tuple[int, ...]) -> tuple[float, float]:
    """Milliseconds until the slot is free, and of a step."""
    async with client.stream("POST", "/v1/completions", json=_body(CTX // 2, endings)) as response:
        arrivals = []
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.perf_counter())
            if len(arrivals) == READ:
                break
    began = time.perf_counter()
    while not (await client.get("/v1/health")).json()["slots_free"]:
        await asyncio.sleep(0)
    freed = time.perf_counter() - began
    return 1000 * freed, 1000 * statistics.median(later - sooner for sooner, later in itertools.pairwise(arrivals))
