"""rbee on a GPU, where benchmarks/gpu/run.sh has built llama.cpp and written models of random weights.

Collected only where RBEE_TEST_GPU names its folder; a rehearsal of it without a GPU runs the same tests on the CPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import memory
from benchmarks.gpu.node import NAME, GpuNode, gpu_node
from benchmarks.gpu.work import ENV, Work
from tests.testbed.cli import Rbee
from tests.testbed.node import wait_until

pytestmark = pytest.mark.gpu

QUESTION = "Why is the sky blue?"
#: More tokens than any test waits for.
LONG = ("--ctx", "16384", "--max-tokens", "15000")
#: MB between two readings that are of no process.
NOISE_MB = 2.0


@pytest.fixture(scope="module")
def node() -> Iterator[GpuNode]:
    """A bare node; the tests of the module share what the first of them puts there."""
    with gpu_node(Work.read(Path(os.environ[ENV]))) as started:
        yield started


@pytest.fixture
def keeper(node: GpuNode) -> Iterator[Rbee]:
    """A keeper with an empty home; no worker and no hive is left at the end."""
    with node.keeper() as rbee:
        yield rbee
    wait_until(lambda: not memory.workers(node), 30, lambda: f"workers left: {memory.workers(node)}")


def test_a_bare_node_answers_from_its_gpu(keeper: Rbee, node: GpuNode) -> None:
    finished = ask(keeper, node, "small")
    assert finished["usage"]["completion_tokens"] == 8
    (worker,) = workers(keeper)
    assert worker["backend"] == node.work.backend
    assert (worker["device"] == "cpu") == (node.work.backend == "cpu")
    told = keeper("nodes", "check", NAME, "--json").stdout
    if node.work.backend == "cuda":
        assert re.search(r"NVIDIA|CUDA", told)


def test_gpu_and_processor_say_the_same(keeper: Rbee, node: GpuNode) -> None:
    """The likeliest token of each of eight prompts; f16 beside f32 may turn a close one."""
    if node.work.backend == "cpu":
        pytest.skip("there is no GPU to compare")
    prompts = [f"{number} bees met {number} wasps" for number in range(10, 18)]
    words = ("--temperature", "0", "--max-tokens", "1", "--raw")
    said = {
        layers: [
            keeper("infer", "--node", NAME, *of(node, "small"), *layers, *words, prompt).stdout for prompt in prompts
        ]
        for layers in (("--gpu-layers", "all"), ("--gpu-layers", "0"))
    }
    one, other = said.values()
    assert sum(ours == theirs for ours, theirs in zip(one, other, strict=True)) >= 6, said


def test_a_part_of_the_layers_on_the_gpu(keeper: Rbee, node: GpuNode) -> None:
    if node.work.backend == "cpu":
        pytest.skip("there is no GPU to put layers on")
    assert ask(keeper, node, "small", "--gpu-layers", "2")["usage"]["completion_tokens"] == 8


def test_ctrl_c_frees_the_slot(keeper: Rbee, node: GpuNode) -> None:
    with keeper.start("infer", "--node", NAME, *of(node, "small"), "--slots", "1", *LONG, QUESTION) as running:
        running.wait_for_pieces(8)
        running.interrupt()
        assert running.finish().status == 130
    finished = ask(keeper, node, "small", "--slots", "1", "--ctx", "16384")
    assert finished["timings"]["first_token_s"] < 5
    assert len(workers(keeper)) == 1


def test_a_stopped_worker_leaves_nothing_in_memory(keeper: Rbee, node: GpuNode) -> None:
    before = memory.used_mb(node)
    ask(keeper, node, "small")
    taken = memory.used_mb(node) - before
    assert taken > node.work.model("small").stat().st_size / 1e6
    (worker,) = workers(keeper)
    keeper("workers", "stop", worker["id"])
    assert memory.settled_mb(node, before + NOISE_MB) <= before + NOISE_MB


def test_two_models_on_one_gpu(keeper: Rbee, node: GpuNode) -> None:
    for _ in range(2):
        for name in ("small", "other"):
            assert ask(keeper, node, name)["usage"]["completion_tokens"] == 8
    assert len({worker["id"] for worker in workers(keeper)}) == 2


def test_two_keepers_share_a_worker(keeper: Rbee, node: GpuNode) -> None:
    with node.keeper("second") as second:
        first_answer, second_answer = (ask(each, node, "small") for each in (keeper, second))
        assert first_answer["worker"] == second_answer["worker"]
        assert len(memory.workers(node)) == 1


def test_what_does_not_fit_is_refused_and_what_is_there_goes_on(keeper: Rbee, node: GpuNode) -> None:
    running = ask(keeper, node, "small")["worker"]
    on_gpu = ("--gpu-layers", "all") if node.work.backend == "cuda" else ()  # else it is RAM that the rest lacks
    words = (*on_gpu, "--ctx", "262144", "--slots", "64", "--json", QUESTION)
    refused = keeper("infer", "--node", NAME, *of(node, node.work.large.stem), *words, status=None)
    assert refused.status != 0
    code = "VRAM_EXHAUSTED" if node.work.backend == "cuda" else "RAM_EXHAUSTED"
    assert code in refused.stdout, refused.stdout
    assert ask(keeper, node, "small")["worker"] == running


def of(node: GpuNode, name: str) -> tuple[str, ...]:
    return "--model", f"file:{node.work.model(name)}"


def ask(keeper: Rbee, node: GpuNode, name: str, *words: str) -> dict[str, Any]:
    """What an answer of eight tokens ended with."""
    told = keeper("infer", "--node", NAME, *of(node, name), *words, "--max-tokens", "8", "--json", QUESTION)
    finished = told.lines()[-1]
    assert isinstance(finished, dict)
    return finished


def workers(keeper: Rbee) -> list[dict[str, Any]]:
    return list(keeper("workers", "list", "--json").json())
