"""LoRA adapters on llama.cpp itself: a model with one gives the tokens of the model that has the change in its weights,
and requests of different scales do not touch each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from rbee_remote.protocol import AdapterScale, ErrorCode, GenerateRequest, RemoteError, Sampling, WorkerConfig
from rbee_remote.protocol.load import AdapterFile
from rbee_remote.protocol.load_options import WorkerOptions
from rbee_remote.worker.compute.batching import Scheduler
from rbee_remote.worker.compute.steps import Steps
from rbee_remote.worker.compute.threads import ThreadBudget
from rbee_remote.worker.engine.interface import Engine
from rbee_remote.worker.requests.adapters import scales_of
from rbee_remote.worker.requests.generation import Embedding, Generation
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.prompt import Prompt
from tests import tiny_adapters, tiny_models

pytestmark = pytest.mark.model

ANSWER = 12
PROMPT = [1, *(3 + (7 * at * at + at) % 256 for at in range(60))]
Scales = Mapping[int, float] | None


class Worker:
    """An engine and its scheduler, stepped by the test."""

    def __init__(self, config: WorkerConfig) -> None:
        from rbee_remote.worker.llama.engine import load_engine

        self.config = config
        self.engine: Engine = load_engine(config, lambda _: True)
        self.reused: dict[str, int] = {}
        self._open: dict[str, Generation | Embedding] = {}
        self._scheduler = Scheduler(config.slots, 8, self.engine.n_batch)
        budget = ThreadBudget.of_this_machine(1)
        self._steps = Steps(self.engine, self._scheduler, self._open, lambda call: call(), lambda: None, budget)

    def answers(self, *asked: Scales, prompt: Sequence[int] = PROMPT) -> list[list[int]]:
        """The greedy tokens behind the prompt for requests that come at once, by the scales that each asks for."""
        entries = []
        for scales in asked:
            lora = None if scales is None else tuple(AdapterScale(*each) for each in scales.items())
            request = GenerateRequest(
                f"{len(self.reused):032x}", prompt="-", sampling=Sampling(temperature=0), lora=lora
            )
            generation = Generation(request, Journal(), Prompt(tuple(prompt), ANSWER))
            self._scheduler.submit(generation.key, prompt, scales=scales_of(self.config.adapters, request.lora))
            self._open[generation.key] = generation
            self.reused[generation.key] = 0
            entries.append(self._scheduler.entry(generation.key))
        while self._open:
            plan = self._steps.plan()
            for move in plan.moves:
                self.reused[move.key] = move.count
            assert self._steps.compute(plan)
            self._steps.take(plan)
        return [entry.tokens[len(prompt) :] for entry in entries if entry]

    @property
    def last_reused(self) -> int:
        return list(self.reused.values())[-1]


Open = Callable[..., Worker]


@pytest.fixture
def open_worker(tmp_path: Path) -> Iterator[Open]:
    """model: "" for the tiny llama. Its adapters have the seeds as names."""
    model = tiny_models.write(tmp_path / "llama.gguf", "llama")

    with ExitStack() as stack:

        def run(*adapters: tuple[int, float], merged: dict[int, float] | None = None) -> Worker:
            path = tiny_adapters.write_merged(tmp_path / "merged.gguf", model, merged) if merged else model
            files = [
                AdapterFile(str(seed), str(tiny_adapters.write(tmp_path / f"{seed}.gguf", seed)), scale)
                for seed, scale in adapters
            ]
            options = WorkerOptions(threads=1)
            config = WorkerConfig("0" * 16, "m", str(path), "", options, 2048, 1.0, slots=2, adapters=tuple(files))
            worker = Worker(config)
            stack.callback(worker.engine.close)
            return worker

        yield run


@pytest.mark.parametrize("changes", [{1: 1.0}, {1: 0.5}, {1: 0.75, 2: -0.5}])
def test_a_model_with_adapters_is_the_one_with_their_change_in_its_weights(
    open_worker: Open, changes: dict[int, float]
) -> None:
    plain, merged = open_worker().answers(None), open_worker(merged=changes).answers(None)
    assert open_worker(*changes.items()).answers(None) == merged != plain


def test_requests_of_different_scales_at_once_each_get_what_they_get_alone(open_worker: Open) -> None:
    asked: list[Scales] = [None, {0: 0.5}, {}, {1: 1.0}, {0: 0.5}]
    alone = [open_worker((1, 1.0), (2, 0.0)).answers(scales)[0] for scales in asked]
    assert alone[2] == open_worker().answers(None)[0]  # what is not named is not applied
    assert alone[1] == open_worker(merged={1: 0.5}).answers(None)[0]
    assert len({tuple(answer) for answer in alone}) == 4
    assert open_worker((1, 1.0), (2, 0.0)).answers(*asked) == alone


def test_nothing_is_reused_that_was_computed_by_other_scales(open_worker: Open) -> None:
    worker = open_worker((1, 1.0))
    (first,) = worker.answers(None)
    (other,) = worker.answers({0: 0.5})
    assert worker.last_reused == 0
    assert other != first
    assert worker.answers({0: 1.0}) == [first]  # the same as those that it was loaded with
    assert worker.last_reused == len(PROMPT) - 1
    assert worker.answers({0: 0.5}) == [other]
    assert worker.last_reused == len(PROMPT) - 1


def test_a_measurement_runs_with_the_adapters_as_they_were_loaded(open_worker: Open) -> None:
    worker = open_worker((1, 1.0))
    (first,) = worker.answers(None)
    worker.answers({0: 0.5})
    assert worker.engine.bench(8, 2)
    assert open_worker((1, 1.0)).answers(None) == [first]


def test_an_adapter_for_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    from rbee_remote.worker.llama.engine import load_engine

    model = tiny_models.write(tmp_path / "llama.gguf", "llama")
    config = WorkerConfig("0" * 16, "m", str(model), "", WorkerOptions(), 512, 1.0)
    wide = tiny_adapters.write(tmp_path / "wide.gguf", 1, width=2 * tiny_models.WIDTH)
    for path in (wide, model):  # one that is no adapter, too
        file = AdapterFile("file:/wide.gguf", str(path), 1.0)
        with pytest.raises(RemoteError, match=r"cannot load the adapter file:/wide\.gguf") as raised:
            load_engine(replace(config, adapters=(file,)), lambda _: True)
        assert raised.value.code is ErrorCode.MODEL_INVALID
        assert raised.value.hint
        assert raised.value.details["llama.cpp"]


def test_why_a_load_failed_is_known_while_another_engine_is_cut_short(tmp_path: Path) -> None:
    from rbee_remote.worker.llama import log
    from rbee_remote.worker.llama.engine import load_engine

    model = tiny_models.write(tmp_path / "llama.gguf", "llama")
    config = WorkerConfig("0" * 16, "m", str(model), "", WorkerOptions(), 512, 1.0)
    engine = load_engine(config, lambda _: True)
    engine.interrupt()
    file = AdapterFile("m", str(model), 1.0)
    with pytest.raises(RemoteError) as raised:
        load_engine(replace(config, adapters=(file,)), lambda _: True)
    assert raised.value.details["llama.cpp"]
    engine.close()
    assert not log.interrupted, "what the next one logs is hidden"
