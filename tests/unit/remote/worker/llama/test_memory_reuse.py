"""Prefix reuse on llama.cpp itself, for each kind of memory: whatever a slot held before, an answer is the one that the
model gives alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from rbee_remote.protocol import GenerateRequest, Sampling, WorkerConfig, WorkerOptions
from rbee_remote.protocol.prompt_digest import GAP
from rbee_remote.worker.compute.batching import Scheduler
from rbee_remote.worker.compute.steps import Steps
from rbee_remote.worker.compute.threads import ThreadBudget
from rbee_remote.worker.engine.interface import Engine
from rbee_remote.worker.requests.generation import Embedding, Generation
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.prompt import Prompt
from tests import tiny_models

pytestmark = pytest.mark.model

KINDS = ("llama", "gemma3", "mamba")
ANSWER = 12
Open = Callable[[str], "Worker"]


class Worker:
    """An engine and its scheduler, stepped by the test."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self.engine = engine
        self.open: dict[str, Generation | Embedding] = {}
        shares, forgets = engine.info.can_share, engine.info.forgets
        self.scheduler = Scheduler(slots, 8, engine.n_batch, shares=shares, forgets=forgets)
        self.reused: dict[str, int] = {}
        self._steps = Steps(
            engine, self.scheduler, self.open, lambda call: call(), lambda: None, ThreadBudget.of_this_machine(1)
        )

    def submit(self, prompt: Sequence[int], *, reuse: bool = True, digests: tuple[str, ...] = ()) -> Generation:
        request = GenerateRequest(f"{len(self.reused):032x}", prompt="-", sampling=Sampling(temperature=0))
        generation = Generation(request, Journal(), Prompt(tuple(prompt), ANSWER))
        self.scheduler.submit(generation.key, prompt, reuse=reuse, digests=digests)
        self.open[generation.key] = generation
        self.reused[generation.key] = 0
        return generation

    def embed(self, tokens: Sequence[int], *, cut: int | None = None) -> list[float]:
        """cut: the number of the step that is interrupted."""
        loop = asyncio.new_event_loop()
        embedding = Embedding("text", tokens, "mean", loop.create_future())
        self.scheduler.submit("text", tokens, embeds=True)
        self.open["text"] = embedding
        step = 0
        while not embedding._future.done():
            if step == cut:
                self.cut_step()
            self.step()
            step += 1
        loop.close()
        return embedding._future.result()

    def run(self) -> None:
        while self.open:
            self.step()

    def step(self) -> None:
        plan = self._steps.plan()
        for move in plan.moves:
            self.reused[move.key] = move.count
        if plan.batch:
            assert self._steps.compute(plan)
            self._steps.take(plan)

    def cut_step(self) -> None:
        plan = self._steps.plan()
        self.engine.interrupt()
        assert not self._steps.compute(plan)
        self.engine.rearm()
        self._steps.take_back(plan)

    def told(self) -> dict[int, tuple[str, ...]]:
        return self.scheduler.told(self.engine.reusable)

    def tokens(self, prompt: Sequence[int], *, reuse: bool = True) -> tuple[list[int], int]:
        """What follows a prompt, and how many of its tokens were reused."""
        generation = self.submit(prompt, reuse=reuse)
        entry = self.scheduler.entry(generation.key)
        assert entry is not None
        self.run()
        return entry.tokens[len(prompt) :], self.reused[generation.key]


@pytest.fixture
def open_worker(tmp_path: Path) -> Iterator[Open]:
    from rbee_remote.worker.llama.engine import load_engine

    with ExitStack() as stack:

        def run(kind: str) -> Worker:
            path = tiny_models.write(tmp_path / f"{kind}.gguf", kind)
            config = WorkerConfig("0" * 16, "m", str(path), "", WorkerOptions(threads=1), 2048, 1.0, slots=2)
            engine = load_engine(config, lambda _: True)
            stack.callback(engine.close)
            return Worker(engine, 2)

        yield run


def text(start: int, length: int) -> list[int]:
    """Tokens that look like nothing."""
    return [1, *(3 + (start + 7 * at * at + at) % 256 for at in range(length))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_goes_on_where_it_was(open_worker: Open, kind: str) -> None:
    worker = open_worker(kind)
    history = text(1, 900)
    first, _ = worker.tokens(history)
    history = [*history, *first, *text(2, 40)[1:]]
    second, reused = worker.tokens(history)
    assert reused >= 900
    assert second == worker.tokens(history, reuse=False)[0]


@pytest.mark.parametrize(("kind", "goes_back"), [("llama", True), ("gemma3", False), ("mamba", False)])
def test_a_prompt_that_branches_off_builds_on_what_the_memory_still_has(
    open_worker: Open, kind: str, goes_back: bool
) -> None:
    """A window has lost what lies before it, and a recurrent state cannot go back at all: they compute it again."""
    worker = open_worker(kind)
    trunk = text(1, 300)
    worker.tokens([*trunk, *text(2, 1200)[1:]])
    branch = [*trunk, *text(3, 20)[1:]]
    answer, reused = worker.tokens(branch)
    assert (reused == len(trunk)) == goes_back
    assert answer == worker.tokens(branch, reuse=False)[0]


@pytest.mark.parametrize(("kind", "least", "most"), [("llama", 0, 0), ("gemma3", 1, 10), ("mamba", 11, 11)])
def test_what_is_told_of_a_memory_can_be_built_on(open_worker: Open, kind: str, least: int, most: int) -> None:
    """least, most: of twelve digests, those that are told as gaps."""
    worker = open_worker(kind)
    digests = tuple(f"{number}" for number in range(12))
    generation = worker.submit(text(1, 1199), digests=digests)
    held: tuple[str, ...] = ()
    while worker.scheduler.entry(generation.key):
        assert kind == "llama" or not held  # a window and a state move on while a request runs
        worker.step()
        held = worker.told().get(0, held)
    gaps = held.count(GAP)
    assert least <= gaps <= most
    assert held == (*(GAP,) * gaps, *digests[gaps:])
    reusable = [worker.engine.reusable(0, 100 * count) > 0 for count in range(1, 12)]
    assert reusable == [digest != GAP for digest in held[:-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_two_that_begin_alike_get_the_answers_they_would_get_alone(open_worker: Open, kind: str) -> None:
    worker = open_worker(kind)
    trunk = text(1, 300)
    prompts = [[*trunk, *text(number, 30)[1:]] for number in (2, 3)]
    alone = [worker.tokens(prompt, reuse=False)[0] for prompt in prompts]
    worker.scheduler.forget()
    entries = [worker.scheduler.entry(worker.submit(prompt).key) for prompt in prompts]
    worker.run()
    assert [entry.tokens[len(prompt) :] for entry, prompt in zip(entries, prompts, strict=True) if entry] == alone
    shared = max(worker.reused.values())
    assert shared == (len(trunk) if kind != "mamba" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_embedded_beside_a_long_prompt(open_worker: Open, kind: str) -> None:
    worker = open_worker(kind)
    prompt, to_embed = text(1, 900), text(2, 70)
    expected, _ = worker.tokens(prompt, reuse=False)
    alone = worker.embed(to_embed)
    generation = worker.submit(prompt, reuse=False)
    entry = worker.scheduler.entry(generation.key)
    assert entry is not None
    assert worker.embed(to_embed) == pytest.approx(alone, abs=1e-4)
    worker.run()
    assert entry.tokens[len(prompt) :] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_step_counts_no_token_of_an_embedding_twice(open_worker: Open, kind: str) -> None:
    worker = open_worker(kind)
    alone = worker.embed(text(2, 70))
    assert worker.embed(text(2, 70), cut=1) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_step_changes_nothing(open_worker: Open, kind: str) -> None:
    worker = open_worker(kind)
    prompt = text(4, 700)
    expected, _ = worker.tokens(prompt, reuse=False)
    generation = worker.submit(prompt, reuse=False)
    entry = worker.scheduler.entry(generation.key)
    assert entry is not None
    worker.step()
    worker.cut_step()
    while len(entry.tokens) == len(prompt):
        worker.step()
    worker.cut_step()
    worker.run()
    assert entry.tokens[len(prompt) :] == expected
