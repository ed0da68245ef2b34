"""From the options that were asked for to those that a worker gets."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.hive.fit.needs import Estimate
from rbee_remote.hive.fit.options import WHOLE_CTX, closed, context_sizes, host_mb, need_of, points_of_interest, resolve
from rbee_remote.hive.fit.scheduler import WorkerKey
from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError, WorkerOptions
from rbee_remote.protocol.load_options import AUTO_CTX, MOST_CTX
from rbee_remote.protocol.measuring import Point

#: 100 MB of weights; 1 MB of cache for 500 tokens in f16.
META = ModelMeta("llama", 9, 8192, 100, 1000, 10, 50, 50, n_head=10, kv_per_token=1000)
SIZE = 100 * 10**6
RAM = Estimate(META, SIZE)
VRAM = replace(RAM, memory="vram", gpus=1)


def asked(on_gpu: bool = False, **options: Any) -> WorkerOptions:
    backend = "cuda" if on_gpu else "cpu"
    return closed(WorkerOptions(**options), META, backend=backend, on_gpu=on_gpu, threads=2)


def test_what_does_not_depend_on_memory_is_closed() -> None:
    options = closed(WorkerOptions(gpu_layers=5, devices=("CUDA0",)), META, backend="cpu", on_gpu=False, threads=2)
    assert options == WorkerOptions(ctx=None, slots=None, backend="cpu", gpu_layers=0, threads=2)
    assert closed(WorkerOptions(), replace(META, n_ctx_train=512), backend="cpu", on_gpu=False, threads=2).ctx == 512
    on_gpu = closed(WorkerOptions(gpu_layers=4096, threads=8), META, backend="cuda", on_gpu=True, threads=2)
    assert (on_gpu.gpu_layers, on_gpu.threads) == (10, 8), "as many layers as there are, with the output's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ctx": -1}, "ctx has to be between"),
        ({"slots": 0}, "slots has to be between"),
        ({"slots": 257}, "slots has to be between"),
        ({"threads": 0}, "threads has to be between"),
        ({"gpu_layers": -2}, "gpu_layers has to be between"),
        ({"kv_type": "q2_k"}, "'q2_k' is not a KV cache type"),
        ({"kv_type": "q8_0"}, "blocks of 32 values, and this model's heads have 50"),
        ({"kv_type": "q4_0", "flash_attention": "off"}, "needs flash attention"),
        ({"flash_attention": "yes"}, "auto, on or off"),
        ({"tensor_split": (1.0, -1.0)}, "positive"),
        ({"tensor_split": (0.0, 0.0)}, "positive"),
        ({"pooling": "max"}, "'max' is not a pooling: it is auto, mean, cls, last, rank or none"),
        ({"pooling": "rank"}, "has nothing that makes a score"),
    ],
)
def test_what_cannot_be_names_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError, match=message) as failure:
        asked(**options)
    assert failure.value.code is ErrorCode.USAGE


@pytest.mark.parametrize(
    ("meta", "pooling", "message"),
    [
        (META, "none", ""),
        (META, "last", ""),
        (replace(META, ranks=True), "rank", ""),
        (replace(META, architecture="bert"), "none", "this one only reads"),
        (replace(META, whole=True), "none", "this one only reads"),
        (replace(META, architecture="bert"), "cls", ""),
    ],
)
def test_a_pooling_is_one_that_the_model_can_have(meta: ModelMeta, pooling: str, message: str) -> None:
    def close() -> WorkerOptions:
        return closed(WorkerOptions(pooling=pooling), meta, backend="cpu", on_gpu=False, threads=2)

    if not message:
        assert close().pooling == pooling
        return
    with pytest.raises(RemoteError, match=message):
        close()


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_there_are_four_slots_or_as_many_as_fit(slots: int) -> None:
    enough = RAM.need(4096, slots).total_mb
    assert resolve(asked(ctx=4096), RAM, enough).slots == slots
    assert resolve(asked(ctx=4096), RAM, enough - 1).slots == max(1, slots - 1)
    assert resolve(asked(ctx=4096), RAM, 10**6).slots == 4


def test_slots_that_are_asked_for_are_not_fewer() -> None:
    assert resolve(asked(slots=8), RAM, 1).slots == 8


def test_the_largest_context_that_fits_leaves_a_tenth_free() -> None:
    available = RAM.need(4096, 1).total_mb * 10 // 9 + 1
    options = resolve(asked(ctx=0, slots=1), RAM, available)
    assert options.ctx is not None
    assert 4096 <= options.ctx < 4608
    assert options.ctx % 256 == 0
    assert need_of(options, RAM).total_mb <= 0.9 * available


def test_the_largest_context_goes_before_slots_and_ends_where_training_did() -> None:
    plenty = resolve(asked(ctx=0), RAM, 10**6)
    assert (plenty.ctx, plenty.slots) == (8192, 4)
    two = resolve(asked(ctx=0), RAM, RAM.need(8192, 2).total_mb * 10 // 9 + 1)
    assert (two.ctx, two.slots) == (8192, 2)
    little = resolve(asked(ctx=0), RAM, RAM.need(2048, 1).total_mb * 10 // 9 + 1)
    assert little.slots == 1
    assert little.ctx is not None
    assert 2048 <= little.ctx < 8192


def test_a_model_that_was_trained_for_little_gets_no_more() -> None:
    meta = replace(META, n_ctx_train=100)
    options = closed(WorkerOptions(ctx=0), meta, backend="cpu", on_gpu=False, threads=1)
    assert resolve(options, Estimate(meta, SIZE), 10**6).ctx == 100
    assert resolve(options, Estimate(meta, SIZE), 1).ctx == 100, "not even this fits, which is refused later"


#: As Llama 3.1 8B in Q4_K_M: 131 kB of cache for each token.
LARGE = replace(META, n_ctx_train=131072, n_layers=32, kv_per_token=65536)
LARGE_RAM = Estimate(LARGE, 4_900_000_000)
LARGE_VRAM = replace(LARGE_RAM, memory="vram", gpus=1)


@pytest.mark.parametrize(
    ("estimate", "slots", "free_gb", "given"),
    [
        (LARGE_VRAM, None, 80, (65536, 4)),
        (LARGE_VRAM, None, 47, (32768, 4)),
        (LARGE_VRAM, None, 24, (32768, 2)),
        (LARGE_VRAM, 1, 24, (65536, 1)),
        (LARGE_VRAM, 4, 24, (16384, 4)),
        (LARGE_VRAM, None, 11, (4096, 4)),
        (LARGE_VRAM, None, 8, (4096, 4)),
        (LARGE_VRAM, None, 7, (4096, 2)),
        (LARGE_RAM, None, 500, (16384, 4)),
        (LARGE_RAM, None, 16, (8192, 4)),
        (LARGE_RAM, None, 10, (4096, 4)),
        (RAM, None, 500, (8192, 4)),
        (replace(RAM, size=10**6), None, 500, (4096, 4)),
    ],
)
def test_a_context_that_nobody_said_grows_into_free_memory(
    estimate: Estimate, slots: int | None, free_gb: int, given: tuple[int, int]
) -> None:
    gpu = estimate.memory == "vram"
    wanted = closed(WorkerOptions(slots=slots), estimate.meta, backend="cuda" if gpu else "cpu", on_gpu=gpu, threads=2)
    options = resolve(wanted, estimate, free_gb * 1000, free_gb * 1000)
    assert (options.ctx, options.slots) == given


def test_a_context_that_nobody_said_ends_no_other_worker() -> None:
    wanted = closed(WorkerOptions(), LARGE, backend="cuda", on_gpu=True, threads=2)
    assert resolve(wanted, LARGE_VRAM, 80_000, 10_000).ctx == 4096, "70 GB are there, and others have them"


@given(st.integers(0, 5000), st.sampled_from([None, 0, 256, 4096, 8192]), st.sampled_from([None, 1, 3]), st.booleans())
def test_what_is_resolved_fits_or_is_the_least(available: int, ctx: int | None, slots: int | None, gpu: bool) -> None:
    estimate = VRAM if gpu else RAM
    wanted = asked(gpu, ctx=ctx, slots=slots)
    options = resolve(wanted, estimate, available)
    assert None not in (options.ctx, options.slots, options.gpu_layers)
    key = WorkerKey("m", "/m", options, wanted)
    assert key.serves(WorkerKey("m", "/m", wanted, wanted)), "the next one who asks the same finds it"
    if need_of(options, estimate).total_mb > available:
        assert options.slots == (slots or 1)
        assert options.ctx == {None: 4096, 0: 256}.get(ctx, ctx)
        assert options.gpu_layers == (1 if gpu else 0)


def test_gpus_get_as_many_layers_as_they_hold() -> None:
    every = VRAM.need(4096, 1)
    assert resolve(asked(True, ctx=4096, slots=1), VRAM, every.total_mb).gpu_layers == 10
    half = every.part(0.5).total_mb
    options = resolve(asked(True, ctx=4096, slots=1), VRAM, half)
    assert options.gpu_layers == 5
    assert need_of(options, VRAM).total_mb <= half
    assert host_mb(options, VRAM) > 50, "the other half stays in RAM"
    assert host_mb(replace(options, gpu_layers=10), VRAM) == 0
    assert resolve(asked(True, slots=1, gpu_layers=7), VRAM, 1).gpu_layers == 7


def test_a_file_that_claims_billions_of_layers_costs_no_time() -> None:
    estimate = replace(VRAM, meta=replace(META, n_layers=2**31))
    begun = time.process_time()
    options = resolve(asked(True, ctx=4096, slots=1), estimate, VRAM.need(4096, 1).part(0.5).total_mb)
    assert time.process_time() - begun < 1
    assert options.gpu_layers is not None
    assert 2**29 < options.gpu_layers < 2**31


def test_a_context_that_costs_nothing_is_no_larger_than_any_may_be() -> None:
    recurrent = replace(META, n_ctx_train=2**31, kv_per_token=0, state_per_slot=1000, n_head_kv=0)
    options = resolve(asked(), replace(RAM, meta=recurrent), 10**9, 10**9)
    assert options.ctx is not None
    assert 4096 < options.ctx <= MOST_CTX


def test_fewer_slots_come_before_fewer_layers() -> None:
    options = resolve(asked(True, ctx=4096), VRAM, VRAM.need(4096, 2).total_mb)
    assert (options.slots, options.gpu_layers) == (2, 10)


#: MB of all memory.
WHOLE = 1000


@pytest.mark.parametrize(
    ("wanted", "available", "points"),
    [
        ({"ctx": 4096, "slots": 1}, 10**6, ()),
        ({"ctx": 4096, "slots": 1}, 200, (Point(4096, 1),)),
        ({"ctx": 4096}, 200, tuple(Point(4096, slots) for slots in (4, 3, 2, 1))),
        ({"ctx": 0, "slots": 2}, 10**6, ()),
        ({"ctx": 0, "slots": 2}, 200, tuple(Point(ctx, 2) for ctx in (512, 1024, 2048, 4096, 8192))),
    ],
)
def test_llama_cpp_is_asked_where_memory_is_not_plentiful(
    wanted: dict[str, Any], available: int, points: tuple[Point, ...]
) -> None:
    assert points_of_interest(asked(**wanted), RAM, available, WHOLE) == points


@pytest.mark.parametrize(
    ("wanted", "points"),
    [
        ({"ctx": 4_194_304, "slots": 64}, ()),
        ({"ctx": 4_194_304}, ()),
        ({"ctx": 4_194_304, "slots": 1, "kv_type": "f32"}, ()),
        ({"ctx": 1_048_576}, (Point(1_048_576, 1),)),  # 2.1 GB of cache in 1 GB: what is near is measured
        ({"ctx": 0, "slots": 256}, tuple(Point(ctx, 256) for ctx in (512, 1024, 2048, 4096))),
    ],
)
def test_llama_cpp_is_not_asked_for_what_is_many_times_the_whole_memory(
    wanted: dict[str, Any], points: tuple[Point, ...]
) -> None:
    assert points_of_interest(asked(**wanted), RAM, 200, WHOLE) == points


def test_the_context_sizes_have_one_where_a_window_is_full() -> None:
    assert context_sizes(replace(META, n_ctx_train=5000, n_swa=1024)) == (512, 1024, 1536, 2048, 4096, 5000)
    assert context_sizes(replace(META, n_ctx_train=256)) == (256,)


HAS = resolve(asked(), RAM, 10**6)


@pytest.mark.parametrize(
    ("wanted", "serves"),
    [
        (asked(), True),
        (asked(slots=4), True),
        (asked(slots=3), False),
        (asked(ctx=4096), True),
        (asked(ctx=2048), True),
        (asked(ctx=8192), False),
        (asked(ctx=0), False),
        (asked(kv_type="f32"), False),
        (asked(flash_attention="on"), False),
        (asked(threads=1), False),
        (asked(True), False),
    ],
)
def test_a_worker_serves_who_asks_for_what_it_has_or_leaves_it_open(wanted: WorkerOptions, serves: bool) -> None:
    worker = WorkerKey("m", "/m", HAS, asked())
    assert worker.serves(WorkerKey("m", "/m", wanted, wanted)) is serves
    assert not worker.serves(WorkerKey("other", "/m", wanted, wanted))


def test_a_worker_with_less_because_memory_was_short_is_found_again() -> None:
    short = resolve(asked(), RAM, RAM.need(4096, 2).total_mb)
    assert short.slots == 2
    worker = WorkerKey("m", "/m", short, asked())
    assert worker.serves(WorkerKey("m", "/m", asked(), asked()))
    largest = resolve(asked(ctx=0, slots=1), RAM, RAM.need(4096, 1).total_mb)
    assert WorkerKey("m", "/m", largest, asked(ctx=0)).serves(WorkerKey("m", "/m", asked(ctx=0), asked(ctx=0)))


@pytest.mark.parametrize(
    ("architecture", "trained", "asked", "ctx"),
    [
        ("bert", 512, None, 512),
        ("bert", 512, 4096, 512),  # it has no positions for more
        ("bert", 512, 256, 256),
        ("nomic-bert", 8192, None, WHOLE_CTX),
        ("nomic-bert", 8192, 8192, 8192),
        ("nomic-bert", 8192, AUTO_CTX, AUTO_CTX),
    ],
)
def test_the_context_of_an_encoder_is_its_longest_text(
    architecture: str, trained: int, asked: int | None, ctx: int
) -> None:
    meta = ModelMeta(architecture, 2, trained, 32, 100, 2, 16, 16, pooling="mean", whole=True)
    found = closed(WorkerOptions(ctx=asked), meta, backend="cpu", on_gpu=False, threads=1)
    assert found.ctx == ctx
