"""Asking llama.cpp before a load: what it answers, that it is asked once, and what happens where it has no answer."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from rbee_remote.hive.fit import meter as meter_module
from rbee_remote.hive.fit.meter import Job, Meter, subject_of
from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions, decode, encode
from rbee_remote.protocol.measuring import MeasureAnswer, Measured, MeasureRequest, Point
from rbee_remote.system.gpu import Gpu

CPU = WorkerOptions(ctx=4096, slots=None, backend="cpu", gpu_layers=0, threads=2)
POINTS = (Point(512, 1), Point(1024, 2))


def job(path: Path, options: WorkerOptions = CPU, points: tuple[Point, ...] = POINTS) -> Job:
    made = Meter().missing(subject_of(str(path), options), points)
    assert made is not None
    return made


@pytest.mark.model
async def test_llama_cpp_tells_what_it_would_take(model_path: Path) -> None:
    meter, asked = Meter(), job(model_path)
    await meter.measure(asked)
    answer = meter.answer(asked.subject)
    assert answer is not None
    assert [point.at for point in answer.points] == list(POINTS)
    first, second = answer.points
    layers, width = 30, 3 * (64 + 64) * 2
    assert abs(first.kv - 512 * layers * width) < 20_000  # the log has hundredths of MiB
    assert abs(second.kv - 2 * 1024 * layers * width) < 20_000
    assert 10**7 < first.host_compute < second.host_compute < 10**8
    assert (first.device_compute, second.device_compute) == (0, 0)
    assert 3 * 10**7 < answer.process < 2 * 10**8, "no tensors were loaded"
    quantised = job(model_path, replace(CPU, kv_type="q8_0"))
    await meter.measure(quantised)
    answer = meter.answer(quantised.subject)
    assert answer is not None
    assert abs(answer.points[0].kv - first.kv * 17 / 32) < 20_000


async def test_a_file_that_is_no_model_is_asked_once_and_leaves_the_formula(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF, and nothing else")
    meter, asked = Meter(), job(path)
    await meter.measure(asked)
    assert meter.answer(asked.subject) is None
    assert meter.missing(asked.subject, POINTS) is None
    assert meter.missing(asked.subject, (*POINTS, Point(1, 1))) == Job(asked.subject, (Point(1, 1),))


async def test_those_who_ask_at_once_share_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    jobs: list[Job] = []

    async def ask(asked: Job) -> MeasureAnswer:
        jobs.append(asked)
        await anyio.sleep(0)
        return MeasureAnswer(1, repacked=False, points=tuple(Measured(point, 1, 1, 0) for point in asked.points))

    monkeypatch.setattr(meter_module, "_ask", ask)
    meter = Meter()
    async with anyio.create_task_group() as tasks:
        for points in (POINTS[:1], POINTS, POINTS[:1]):
            tasks.start_soon(meter.measure, job(path, points=points))
    assert [asked.points for asked in jobs] == [POINTS[:1], POINTS[1:]]
    answer = meter.answer(jobs[0].subject)
    assert answer is not None
    assert [point.at for point in answer.points] == list(POINTS)


def test_what_is_measured_is_the_file_as_it_is_and_how_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    subject = subject_of(str(path), CPU)
    assert subject_of(str(path), replace(CPU, ctx=1, slots=7, threads=9)) == subject
    assert subject_of(str(path), replace(CPU, kv_type="q8_0")) != subject
    assert subject_of(str(path), CPU, "off") != subject
    os.utime(path, ns=(1, 1))
    assert subject_of(str(path), CPU) != subject
    path.unlink()
    with pytest.raises(RemoteError) as failure:
        subject_of(str(path), CPU)
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
async def test_it_is_measured_in_the_sandbox_that_the_worker_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    told = []

    async def run_helper(name: str, *, request: Any, timeout_s: float, env: Any) -> Any:
        told.append(decode(MeasureRequest, request).sandbox)
        return encode(MeasureAnswer(1, repacked=False, points=()))

    monkeypatch.setattr(meter_module, "run_helper", run_helper)
    made = Meter().missing(subject_of(str(path), CPU, mode), POINTS)
    assert made is not None
    await Meter().measure(made)
    assert told == [mode]


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_who_measures_confines_itself_as_it_is_told(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbee_remote.worker import measure

    asked = MeasureRequest(str(tmp_path / "m.gguf"), CPU, POINTS, mode)
    modes = []

    def confine_worker(mode: str, backend: str, rules: object) -> str:
        modes.append((mode, backend))
        raise RemoteError(ErrorCode.INTERNAL, "far enough")

    monkeypatch.setattr(measure, "confine_worker", confine_worker)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(encode(asked))))
    with pytest.raises(RemoteError, match="far enough"):
        measure.main([])
    assert modes == [(mode, "cpu")]


async def test_llama_cpp_sees_the_gpus_that_the_worker_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    told = []

    async def run_helper(name: str, *, request: Any, timeout_s: float, env: Any) -> Any:
        told.append((decode(MeasureRequest, request).options.devices, env["CUDA_VISIBLE_DEVICES"]))
        return encode(MeasureAnswer(1, repacked=False, points=()))

    monkeypatch.setattr(meter_module, "run_helper", run_helper)
    gpu = Gpu(1, "A100", 40000, 39000, uuid="GPU-1")
    options = replace(CPU, backend="cuda", devices=("CUDA1",))
    meter = Meter()
    made = meter.missing(subject_of(str(path), options, gpus=(gpu,)), POINTS)
    assert made is not None
    await meter.measure(made)
    assert told == [((), "GPU-1")]
    # However much memory is free meanwhile, what it takes is the same.
    assert meter.missing(subject_of(str(path), options, gpus=(replace(gpu, free_mb=1),)), POINTS) is None
