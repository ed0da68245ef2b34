"""What a model needs, compared with what a worker really takes, and what a node has."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.gguf_meta import read_meta
from rbee_remote.hive import resources
from rbee_remote.hive.resources import Gpu, Placement, kv_bytes, need, place
from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError
from tests.testbed.node import wait_until
from tests.unit.hive.conftest import HiveFolder

LLAMA_8B = ModelMeta("llama", 32, 131072, 4096, 128256, 8, 128, 128)


def test_the_kv_cache_is_what_llama_cpp_prints() -> None:
    """llama.cpp's own line for Llama 3 8B: `n_ctx = 8192 … KV self size = 1024.00 MiB`."""
    assert kv_bytes(LLAMA_8B, 8192) == 1024 * 2**20


@given(st.integers(1, 2**17), st.integers(1, 16), st.integers(0, 2**40))
def test_more_context_and_slots_never_need_less(ctx: int, slots: int, size: int) -> None:
    some = need(LLAMA_8B, size, ctx=ctx, slots=slots)
    assert need(LLAMA_8B, size, ctx=ctx + 1, slots=slots).total_mb >= some.total_mb
    assert need(LLAMA_8B, size, ctx=ctx, slots=slots + 1).total_mb >= some.total_mb
    assert sum(some.parts_mb) == some.total_mb >= size / 10**6


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
@pytest.mark.parametrize("ctx", [2048, 4096, 8192])
def test_the_need_is_what_a_worker_takes(hive: HiveFolder, model_path: Path, ctx: int) -> None:
    """At most 10 % more than the resident memory after a prompt longer than a micro-batch, and never less."""
    hive.register("smollm2:135m", model_path)
    spawn = {"model": "smollm2:135m", "options": {"ctx": ctx, "backend": "cpu"}}
    needed_mb = hive.ask("POST", "/v1/preflight", spawn)[1]["needed_mb"]
    _, worker = hive.ask("POST", "/v1/workers", spawn)
    state = f"/v1/workers/{worker['id']}"
    wait_until(lambda: hive.ask("GET", state)[1]["state"] == "idle", 60, lambda: str(hive.ask("GET", state)))
    request = {"request_id": f"{ctx:032x}", "prompt": "word " * 1500, "max_tokens": 4}
    assert b"event: done" in post(worker["socket"], "/v1/inference", request)
    resident_mb = psutil.Process(worker["pid"]).memory_info().rss / 10**6
    assert resident_mb <= needed_mb <= 1.1 * resident_mb


@pytest.mark.model
def test_the_metadata_of_the_real_model(model_path: Path) -> None:
    meta = read_meta(model_path)
    assert (meta.n_layers, meta.n_ctx_train, meta.n_vocab, meta.n_head_kv) == (30, 8192, 49152, 3)
    assert meta.quantization == "Q4_1"
    assert meta.parameters == 134_515_008


def test_the_limit_for_tests_lowers_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resources.available_ram_mb() > 200
    monkeypatch.setenv("RBEE_RAM_LIMIT_MB", "200")
    assert resources.available_ram_mb() == 200


def group(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_control_groups_of_both_versions_limit_what_is_available(tmp_path: Path) -> None:
    statistics = "anon 300\nactive_file 150\ninactive_file 50\n"
    parent = {"memory.max": "1000", "memory.current": "500", "memory.stat": statistics}
    group(tmp_path / "two/user", parent)
    group(tmp_path / "two/user/job", {**parent, "memory.max": "max"})
    (tmp_path / "own2").write_text("0::/user/job\n")
    assert resources._cgroup_rooms(tmp_path / "two", tmp_path / "own2") == [700]
    old = {"memory.limit_in_bytes": "800", "memory.usage_in_bytes": "500", "memory.stat": statistics}
    group(tmp_path / "one/memory/job", old)
    (tmp_path / "own1").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    assert resources._cgroup_rooms(tmp_path / "one", tmp_path / "own1") == [500]


@pytest.mark.parametrize(
    ("backend", "layers", "gpus", "runtime", "expected"),
    [
        ("auto", None, (), set(), Placement("cpu", "cpu", "ram")),
        ("auto", None, (Gpu(0, "H100", 80000, 70000),), set(), Placement("cpu", "cpu", "ram")),
        ("auto", None, (), {"cuda"}, Placement("cpu", "cpu", "ram")),
        ("auto", None, (Gpu(0, "H100", 80000, 70000),), {"cuda"}, Placement("cuda", "H100", "vram")),
        ("cuda", 0, (Gpu(0, "H100", 80000, 70000),), {"cuda"}, Placement("cuda", "cpu", "ram")),
        ("cuda", None, (), {"cuda"}, ErrorCode.BACKEND_UNAVAILABLE),
        ("cuda", None, (Gpu(0, "H100", 80000, 70000),), set(), ErrorCode.BACKEND_UNAVAILABLE),
        ("tpu", None, (), set(), ErrorCode.USAGE),
    ],
)
def test_where_a_worker_computes(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    layers: int | None,
    gpus: tuple[Gpu, ...],
    runtime: set[str],
    expected: Placement | ErrorCode,
) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset(runtime))
    if isinstance(expected, ErrorCode):
        with pytest.raises(RemoteError) as failure:
            place(backend, layers, gpus)
        assert failure.value.code is expected
    else:
        assert place(backend, layers, gpus) == expected
