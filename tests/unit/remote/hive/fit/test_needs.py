"""What a model needs: the formula, what lies between measured points, and a real worker."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.hive.fit.needs import Estimate, Need, kv_bytes
from rbee_remote.protocol import ModelMeta, WorkerOptions
from rbee_remote.protocol.load_options import KV_TYPES
from rbee_remote.protocol.measuring import MeasureAnswer, Measured, Point
from tests.testbed.node import wait_until
from tests.unit.remote.hive.conftest import HiveFolder

MIB = 2**20
LLAMA_8B = ModelMeta("llama", 32, 131072, 4096, 128256, 8, 128, 128, n_head=32, kv_per_token=32 * 8 * 256)
#: As Gemma 3 has it, in small: 5 of 6 layers see a window of 1024 tokens.
WINDOWED = ModelMeta("gemma3", 6, 32768, 640, 262144, 1, 256, 256, kv_per_token=512, kv_per_token_swa=2560, n_swa=1024)
#: As Mamba has it: no KV cache, a state for each sequence.
RECURRENT = ModelMeta("mamba", 24, 2**20, 768, 50280, 0, 0, 0, state_per_slot=24 * (3 * 1536 + 16 * 1536))


@pytest.mark.parametrize(
    ("meta", "kv_type", "ctx", "slots", "mebibytes"),
    [
        # llama.cpp's own line for Llama 3 8B: `n_ctx = 8192 … KV self size = 1024.00 MiB`.
        (LLAMA_8B, "f16", 8192, 1, 1024),
        (replace(LLAMA_8B, kv_per_token=0), "f16", 8192, 1, 1024),
        (LLAMA_8B, "f16", 2048, 4, 1024),
        (LLAMA_8B, "q8_0", 8192, 1, 544),
        (LLAMA_8B, "q4_0", 8192, 1, 288),
        (LLAMA_8B, "f32", 8192, 1, 2048),
        (LLAMA_8B, "f16", 100, 4, 4 * 32),  # each slot's cells are padded to 256
        (WINDOWED, "f16", 1024, 1, 6),
        (WINDOWED, "f16", 8192, 1, 8 + 7.5),  # the windowed layers keep 1024 + 512 cells
        (WINDOWED, "f16", 8192, 2, 2 * (8 + 7.5)),
    ],
)
def test_the_kv_cache_is_what_llama_cpp_allocates(
    meta: ModelMeta, kv_type: str, ctx: int, slots: int, mebibytes: float
) -> None:
    assert kv_bytes(meta, kv_type, ctx=ctx, slots=slots) == mebibytes * MIB


def test_a_recurrent_state_does_not_grow_with_the_context_nor_shrink_with_the_cache_type() -> None:
    one = kv_bytes(RECURRENT, ctx=256, slots=1)
    assert one == RECURRENT.state_per_slot * 4
    assert kv_bytes(RECURRENT, "q4_0", ctx=2**20, slots=1) == one
    assert kv_bytes(RECURRENT, ctx=256, slots=3) == 3 * one


models = st.sampled_from([LLAMA_8B, WINDOWED, RECURRENT, replace(LLAMA_8B, tied_bytes=10**8)])


@given(models, st.integers(1, 2**17), st.integers(1, 16), st.integers(0, 2**40), st.sampled_from(sorted(KV_TYPES)))
def test_more_context_and_slots_never_need_less(meta: ModelMeta, ctx: int, slots: int, size: int, kv_type: str) -> None:
    for memory, gpus in (("ram", 0), ("vram", 2)):
        estimate = Estimate(meta, size, memory=memory, options=WorkerOptions(kv_type=kv_type), gpus=gpus)
        some = estimate.need(ctx, slots)
        assert estimate.need(ctx + 1, slots).total_mb >= some.total_mb
        assert estimate.need(ctx, slots + 1).total_mb >= some.total_mb
        assert sum(some.parts_mb) == some.total_mb >= size / 10**6


def test_scores_of_attention_take_room_where_flash_attention_is_off() -> None:
    estimate = Estimate(LLAMA_8B, 0)
    without = replace(estimate, options=WorkerOptions(flash_attention="off"))
    more = without.need(4096, 1).compute - estimate.need(4096, 1).compute
    assert more == 512 * 4096 * 32 * 4


def test_an_embedding_that_is_the_output_too_counts_twice_where_weights_are_rearranged() -> None:
    tied = replace(LLAMA_8B, tied_bytes=10**8)
    assert Estimate(tied, 10**9).need(256, 1).weights == 11 * 10**8
    assert Estimate(tied, 10**9, answer=ANSWER).need(1024, 1).weights == 10**9
    assert Estimate(tied, 10**9, answer=replace(ANSWER, repacked=True)).need(1024, 1).weights == 11 * 10**8
    assert Estimate(tied, 10**9, memory="vram", gpus=1).need(256, 1).weights == 10**9


def at(ctx: int, slots: int, kv: int, compute: int) -> Measured:
    return Measured(Point(ctx, slots), kv, compute, 2 * compute)


ANSWER = MeasureAnswer(
    60, repacked=False, points=(at(2048, 1, 2000, 300), at(1024, 1, 1000, 100), at(1024, 4, 4000, 100))
)


@pytest.mark.parametrize(
    ("ctx", "slots", "expected"),
    [
        (1024, 1, (1000, 100)),
        (2048, 1, (2000, 300)),
        (1536, 1, (1500, 200)),
        (512, 1, (1000, 100)),  # nothing smaller was measured: what is larger is a bound
        (1024, 4, (4000, 100)),
        (4096, 1, None),
        (1024, 2, None),
        (2048, 4, None),
    ],
)
def test_between_measured_points_the_need_grows_in_a_straight_line(
    ctx: int, slots: int, expected: tuple[int, int] | None
) -> None:
    estimate = Estimate(LLAMA_8B, 7, answer=ANSWER)
    need = estimate.measured(ctx, slots)
    if expected is None:
        assert need is None
        assert estimate.need(ctx, slots) == estimate.formula(ctx, slots)
        return
    assert need is not None
    base = estimate.need(1024, slots).compute - 100
    assert (need.weights, need.kv, need.compute - base) == (7, *expected)


def test_of_a_gpu_the_buffers_there_count() -> None:
    need = Estimate(LLAMA_8B, 7, memory="vram", gpus=2, answer=ANSWER).need(1024, 1)
    assert (need.weights, need.kv, need.compute % 10**6) == (7, 1000, 200)
    assert need.compute > 10**9, "each of two devices takes some for itself"


def test_parts_are_rounded_so_that_they_make_the_total() -> None:
    need = Need(1, 10**6, 10**6 + 1)
    assert need.parts_mb == (1, 1, 2)
    assert need.total_mb == 4
    assert need.part(0.5) == Need(1, 500_000, 10**6 + 1)


def post(path: str, target: str, body: dict[str, Any]) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(path)
        content = json.dumps(body).encode()
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return answer


@pytest.mark.model
@pytest.mark.parametrize(
    ("ctx", "slots", "kv_type"), [(2048, 1, "f16"), (4096, 1, "f16"), (8192, 1, "f16"), (2048, 4, "q8_0")]
)
def test_the_need_is_what_a_worker_takes(
    hive: HiveFolder, model_path: Path, ctx: int, slots: int, kv_type: str
) -> None:
    """At most 10 % more than the resident memory after a prompt longer than a micro-batch, and never less: by the
    formula, which is enough while memory is plentiful, and as llama.cpp measures it."""
    hive.register("smollm2:135m", model_path)
    options = {"ctx": ctx, "slots": slots, "kv_type": kv_type, "backend": "cpu", "threads": 1}
    spawn = {"model": "smollm2:135m", "options": options}
    fit = hive.ask("POST", "/v1/preflight", spawn)[1]
    assert (fit["ctx"], fit["slots"], fit["measured"]) == (ctx, slots, False)
    table = hive.ask("POST", "/v1/models/needs", {**spawn, "ctx": [ctx], "slots": [slots]})[1]
    assert table["measured"]
    _, worker = hive.ask("POST", "/v1/workers", spawn)
    assert worker["options"]["kv_type"] == kv_type
    state = f"/v1/workers/{worker['id']}"
    wait_until(lambda: hive.ask("GET", state)[1]["state"] == "idle", 60, lambda: str(hive.ask("GET", state)))
    request = {"request_id": f"{ctx:032x}", "prompt": "word " * 700, "max_tokens": 4}
    for sampling in ({}, {"logprobs": 1}):  # probabilities need numpy, which takes 24 MB and is not there before
        asked = {**request, "request_id": f"{ctx:031x}{len(sampling)}", "sampling": sampling}
        assert b"event: done" in post(worker["socket"], "/v1/inference", asked)
        resident_mb = psutil.Process(worker["pid"]).memory_info().rss / 10**6
        assert resident_mb <= min(fit["needed_mb"], table["points"][0]["needed_mb"])
    assert max(fit["needed_mb"], table["points"][0]["needed_mb"]) <= 1.1 * resident_mb


def test_an_integrated_gpu_takes_from_the_ram_what_another_has_of_its_own() -> None:
    point = Measured(Point(4096, 1), kv=10**6, host_compute=10**6, device_compute=50 * 10**6)
    meta = ModelMeta("llama", 9, 8192, 100, 1000, 10, 50, 50, n_head=10, kv_per_token=1000)
    for answer, extra in ((None, 500), (MeasureAnswer(80 * 10**6, False, (point,)), 550)):
        on_processor = Estimate(meta, 10**8, answer=answer)
        integrated = replace(on_processor, gpus=1)
        assert integrated.need(4096, 1).total_mb - on_processor.need(4096, 1).total_mb == extra
