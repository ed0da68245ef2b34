"""What a node has, and where a worker computes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rbee_remote.gguf.metadata import read_meta
from rbee_remote.hive.fit import resources
from rbee_remote.hive.fit.resources import Gpu, Placement, free_vram_mb, place
from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from tests.doubles import nvml


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
    assert resources._cgroup_limits(tmp_path / "two", tmp_path / "own2") == [(1000, 700)]
    old = {"memory.limit_in_bytes": "800", "memory.usage_in_bytes": "500", "memory.stat": statistics}
    group(tmp_path / "one/memory/job", old)
    (tmp_path / "own1").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    assert resources._cgroup_limits(tmp_path / "one", tmp_path / "own1") == [(800, 500)]


def test_a_limit_counts_like_the_end_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=64 * 10**9, available=50 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resources, "_cgroup_limits", lambda: [resources._CgroupLimit(*each) for each in limits])
    assert resources.ram_mb() == (64_000, 14_000)
    limits.append((2 * 10**9, 1_500 * 10**6))
    assert resources.ram_mb() == (2_000, 500)
    limits.append((200 * 10**9, -5))  # a parent that is over its limit
    assert resources.ram_mb() == (2_000, 2_000)


H100 = Gpu(0, "H100", 80000, 70000, uuid="GPU-1a2b3c4d")
A100 = Gpu(1, "A100", 40000, 39000, uuid="GPU-7788")


@pytest.mark.parametrize(
    ("backend", "layers", "gpus", "runtime", "expected"),
    [
        ("auto", None, (), set(), Placement("cpu", "cpu", "ram")),
        ("auto", None, (H100,), set(), Placement("cpu", "cpu", "ram")),
        ("auto", None, (), {"cuda"}, Placement("cpu", "cpu", "ram")),
        ("auto", None, (H100,), {"cuda"}, Placement("cuda", "H100", "vram", (H100,))),
        ("auto", None, (H100, A100), {"cuda"}, Placement("cuda", "H100, A100", "vram", (H100, A100))),
        ("auto", None, (), {"metal"}, Placement("metal", "metal", "ram")),
        ("cuda", 0, (H100,), {"cuda"}, Placement("cuda", "cpu", "ram")),
        ("cuda", None, (), {"cuda"}, ErrorCode.BACKEND_UNAVAILABLE),
        ("cuda", None, (H100,), set(), ErrorCode.BACKEND_UNAVAILABLE),
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
            place(WorkerOptions(backend=backend, gpu_layers=layers), gpus)
        assert failure.value.code is expected
    else:
        assert place(WorkerOptions(backend=backend, gpu_layers=layers), gpus) == expected


@pytest.mark.parametrize(
    ("devices", "split", "expected"),
    [
        ((), (), (H100, A100)),
        (("CUDA1",), (), (A100,)),
        (("cuda1", "0"), (), (A100, H100)),
        (("GPU-1a2b3c", "GPU-77"), (), (H100, A100)),
        (("gpu-",), (), "'gpu-' could be GPU-1a2b3c4d or GPU-7788"),
        (("GPU-9",), (), "no device 'GPU-9'"),
        (("CUDA0", "CUDA1"), (3.0, 1.0), (H100, A100)),
        (("CUDA2",), (), r"no device 'CUDA2'.*there are CUDA0 \(H100\), CUDA1 \(A100\)"),
        (("-1",), (), "no device '-1'"),
        (("CUDA0", "0"), (), "named twice"),
        ((), (1.0,), "1 shares for 2 GPUs.*one for each of CUDA0, CUDA1"),
        (("CUDA0",), (3.0, 1.0), "2 shares for 1 GPUs"),
    ],
)
def test_devices_are_named_as_ggml_does_or_by_number(
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    split: tuple[float, ...],
    expected: tuple[Gpu, ...] | str,
) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset({"cuda"}))
    if isinstance(expected, tuple):
        placement = place(WorkerOptions(devices=devices, tensor_split=split), (H100, A100))
        assert (placement.gpus, placement.split) == (expected, split)
        return
    with pytest.raises(RemoteError) as failure:
        place(WorkerOptions(devices=devices, tensor_split=split), (H100, A100))
    assert failure.value.code is ErrorCode.USAGE
    assert re.search(expected, f"{failure.value.message}; {failure.value.hint}")


def test_a_gpu_cannot_be_chosen_where_the_processor_computes() -> None:
    with pytest.raises(RemoteError, match="no GPU to choose") as failure:
        place(WorkerOptions(backend="cpu", devices=("CUDA0",)), (H100,))
    assert failure.value.code is ErrorCode.USAGE


@pytest.mark.parametrize(
    ("gpus", "split", "now", "expected"),
    [
        ((H100,), (), (H100, A100), 70000),
        ((H100, A100), (), (H100, A100), 109000),
        ((H100, A100), (1.0, 1.0), (H100, A100), 78000),
        ((H100, A100), (3.0, 1.0), (H100, A100), 93333),
        ((H100, A100), (1.0, 0.0), (H100, A100), 70000),
        ((H100, A100), (), (replace(H100, free_mb=1000), A100), 40000),
        ((A100,), (), (H100,), 0),
    ],
)
def test_given_shares_end_where_the_first_gpu_is_full(
    gpus: tuple[Gpu, ...], split: tuple[float, ...], now: tuple[Gpu, ...], expected: int
) -> None:
    assert free_vram_mb(Placement("cuda", "", "vram", gpus, split), now) == expected


MIG = Gpu(2, "MIG 3g.20gb", 20000, 19000, uuid="MIG-1", instance=0, parent="GPU-2")
MIG2 = replace(MIG, uuid="MIG-2", instance=1, free_mb=18000)


@pytest.mark.parametrize(
    ("gpus", "room", "expected"),
    [
        ((H100,), {"CUDA0": 70000}, [(H100,)]),
        ((H100, A100), {"CUDA0": 70000, "CUDA1": 39000}, [(H100,), (H100, A100)]),
        ((H100, A100), {"CUDA0": 9000, "CUDA1": 39000}, [(A100,), (H100, A100)]),
        ((H100, A100), {"CUDA0": 500, "CUDA1": 39000}, [(A100,)]),  # too little for a part of a split
        ((H100, A100), {}, [(H100,)]),
        ((MIG, MIG2), {"CUDA2.0": 19000, "CUDA2.1": 18000}, [(MIG,)]),
        ((A100, MIG, H100), {"CUDA0": 9000, "CUDA1": 8000, "CUDA2.0": 19000}, [(MIG,), (A100, H100)]),
    ],
)
def test_sets_of_gpus_are_tried_from_the_roomiest_on(
    gpus: tuple[Gpu, ...], room: dict[str, int], expected: list[tuple[Gpu, ...]]
) -> None:
    assert resources.gpu_sets(gpus, room) == expected


@pytest.mark.parametrize("options", [WorkerOptions(devices=("CUDA2.0", "CUDA2.1")), WorkerOptions(tensor_split=(1, 1))])
def test_a_worker_gets_one_mig_instance(monkeypatch: pytest.MonkeyPatch, options: WorkerOptions) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset({"cuda"}))
    with pytest.raises(RemoteError, match="one MIG instance") as failure:
        place(options, (MIG, MIG2))
    assert failure.value.code is ErrorCode.USAGE


def test_an_integrated_gpu_computes_in_ram_and_only_where_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset({"cuda"}))
    spark = Gpu(0, "GB10", 128000, 100000, integrated=True)
    assert place(WorkerOptions(), (spark,)) == Placement("cuda", "GB10", "ram", (spark,))
    assert place(WorkerOptions(), (spark, A100)).gpus == (A100,)


def test_rocm_has_the_gpus_of_amd_and_cuda_those_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset({"cuda", "rocm"}))
    amd = Gpu(0, "MI210", 64000, 60000, vendor="amd")
    assert place(WorkerOptions(backend="rocm"), (H100, amd)) == Placement("rocm", "MI210", "vram", (amd,))
    assert place(WorkerOptions(), (H100, amd)).gpus == (H100,)
    assert place(WorkerOptions(backend="rocm"), (H100, replace(amd, integrated=True))) == Placement(
        "rocm", "rocm", "ram"
    )


def test_the_gpus_that_answer_and_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "one_lost")
    monkeypatch.setattr(resources, "amd_gpus", lambda: iter(()))
    assert [gpu.id for gpu in resources.gpus({})] == ["CUDA1"]
    assert [gpu.id for gpu in resources.gpus({"CUDA_VISIBLE_DEVICES": "GPU-5c2a"})] == ["CUDA1"]
    assert resources.gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert resources.gpus() == ()


@pytest.mark.parametrize(
    ("gpus", "split", "expected"),
    [
        ((H100, A100), (), (("CUDA0", 70000.0), ("CUDA1", 39000.0))),
        ((H100, A100), (3.0, 1.0), (("CUDA0", 3.0), ("CUDA1", 1.0))),
        ((replace(H100, free_mb=0),), (), ()),
        ((), (), ()),
    ],
)
def test_how_a_model_lies_on_gpus(
    gpus: tuple[Gpu, ...], split: tuple[float, ...], expected: tuple[tuple[str, float], ...]
) -> None:
    assert Placement("cuda", "", "vram", gpus, split).shares == expected
