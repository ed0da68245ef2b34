"""GPUs that NVIDIA's library does not know: when ggml is asked, what an answer is good for, what is placed by it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.hive.fit import ggml_devices, resources
from rbee_remote.hive.fit.ggml_devices import GgmlDevices, Question, has_to_be_asked, not_hidden
from rbee_remote.hive.fit.meter import subject_of
from rbee_remote.hive.fit.resources import Placement, free_vram_mb, place
from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions, encode
from rbee_remote.protocol.ggml_gpus import GgmlAnswer, GgmlGpu
from rbee_remote.system.gpu import GGML, Gpu
from rbee_remote.system.gpu_visible import environment, visible, vulkan_settings

H100 = Gpu(0, "H100", 80000, 70000)
RX = Gpu(0, "AMD Radeon RX 7900 XTX", 24000, 23000, vendor=GGML)
ARC = Gpu(1, "Intel Arc A770", 16000, 15000, vendor=GGML)
IRIS = Gpu(2, "Intel Iris Xe", 32000, 30000, vendor=GGML, integrated=True)
MI300 = Gpu(0, "AMD Instinct MI300X", 192000, 190000, vendor="amd")


@pytest.mark.parametrize(
    ("options", "available", "cuda", "expected"),
    [
        (WorkerOptions(), {"vulkan"}, False, True),
        (WorkerOptions(), {"rocm"}, False, False),
        (WorkerOptions(), {"rocm", "vulkan"}, False, False),
        (WorkerOptions(), {"cuda", "vulkan"}, True, False),
        (WorkerOptions(), {"cuda", "vulkan"}, False, True),
        (WorkerOptions(), {"vulkan"}, True, True),
        (WorkerOptions(), set(), False, False),
        (WorkerOptions(), {"metal"}, False, False),
        (WorkerOptions(gpu_layers=0), {"vulkan"}, False, False),
        (WorkerOptions(backend="cpu"), {"vulkan"}, False, False),
        (WorkerOptions(backend="cuda"), {"cuda", "vulkan"}, False, False),
        (WorkerOptions(backend="vulkan"), {"cuda", "vulkan"}, True, True),
        (WorkerOptions(backend="rocm"), {"vulkan"}, False, False),
    ],
)
def test_a_process_is_started_only_where_its_answer_matters(
    options: WorkerOptions, available: set[str], cuda: bool, expected: bool
) -> None:
    assert has_to_be_asked(options, frozenset(available), cuda=cuda) is expected


@pytest.mark.parametrize(
    ("options", "ggml", "runtime", "expected"),
    [
        (WorkerOptions(), (RX,), {"vulkan"}, Placement("vulkan", RX.name, "vram", (RX,))),
        (WorkerOptions(), (RX, ARC), {"vulkan"}, Placement("vulkan", f"{RX.name}, {ARC.name}", "vram", (RX, ARC))),
        (WorkerOptions(), (RX, IRIS), {"vulkan"}, Placement("vulkan", RX.name, "vram", (RX,))),
        (WorkerOptions(), (IRIS,), {"vulkan"}, Placement("vulkan", IRIS.name, "ram")),
        (WorkerOptions(devices=("vulkan1",)), (RX, ARC), {"vulkan"}, Placement("vulkan", ARC.name, "vram", (ARC,))),
        (WorkerOptions(), (), {"vulkan"}, Placement("cpu", "cpu", "ram")),
        (WorkerOptions(), (RX,), set(), Placement("cpu", "cpu", "ram")),
        (WorkerOptions(backend="vulkan"), (RX,), {"vulkan"}, Placement("vulkan", RX.name, "vram", (RX,))),
        (WorkerOptions(backend="vulkan"), (), {"vulkan"}, ErrorCode.BACKEND_UNAVAILABLE),
        (WorkerOptions(devices=("Vulkan2",)), (RX, IRIS), {"vulkan"}, ErrorCode.USAGE),
    ],
)
def test_where_a_worker_computes(
    monkeypatch: pytest.MonkeyPatch,
    options: WorkerOptions,
    ggml: tuple[Gpu, ...],
    runtime: set[str],
    expected: Placement | ErrorCode,
) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset(runtime))
    if isinstance(expected, ErrorCode):
        with pytest.raises(RemoteError) as failure:
            place(options, (), ggml)
        assert failure.value.code is expected
    else:
        assert place(options, (), ggml) == expected


@pytest.mark.parametrize(
    ("gpus", "runtime", "expected"),
    [
        ((H100,), {"cuda", "vulkan"}, "cuda"),
        ((H100,), {"vulkan"}, "vulkan"),
        ((MI300,), {"rocm", "vulkan"}, "rocm"),
        ((MI300,), {"vulkan"}, "vulkan"),
    ],
)
def test_a_makers_own_backend_goes_first_where_the_runtime_has_it(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], runtime: set[str], expected: str
) -> None:
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset(runtime))
    assert place(WorkerOptions(), gpus, (RX,)).backend == expected


def test_what_ggml_said_is_free_is_what_a_worker_can_have() -> None:
    both = Placement("vulkan", "", "vram", (RX, ARC))
    assert free_vram_mb(both, (H100,)) == 38000
    assert free_vram_mb(replace(both, split=(1.0, 1.0)), ()) == 30000
    assert free_vram_mb(replace(both, gpus=(H100,)), ()) == 0, "one of NVIDIA's that is gone has nothing"


def test_vulkans_gpus_are_told_by_name_and_others_by_what_a_process_sees(tmp_path: Path) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "1", "GGML_VK_VISIBLE_DEVICES": "0,1", "VK_DRIVER_FILES": "/x.json", "HOME": "/h"}
    assert environment((RX, ARC), env) == env
    assert vulkan_settings(env) == (("GGML_VK_VISIBLE_DEVICES", "0,1"), ("VK_DRIVER_FILES", "/x.json"))
    model = tmp_path / "m.gguf"
    model.touch()
    subject = subject_of(str(model), WorkerOptions(), gpus=(ARC,), env=vulkan_settings(env))
    assert (subject.options.devices, dict(subject.env)["VK_DRIVER_FILES"]) == (("Vulkan1",), "/x.json")
    assert subject_of(str(model), WorkerOptions(devices=("0",)), gpus=(H100,)).options.devices == ()


class Asked:
    """Stands in for the process `devices`: what it was given, and what it says."""

    def __init__(self) -> None:
        self.answer: GgmlAnswer | Exception = GgmlAnswer(
            (GgmlGpu("Vulkan0", RX.name, "vulkan", False, 24000 * 10**6, 23000 * 10**6),)
        )
        self.envs: list[dict[str, str]] = []

    async def run(self, *arguments: str, env: dict[str, str], timeout_s: float) -> Any:
        assert arguments == ("ggml_gpus",)
        assert timeout_s >= 60, "a driver takes seconds on a GPU that nobody uses"
        self.envs.append(dict(vulkan_settings(env)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return encode(self.answer)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(ggml_devices, "run_helper", made.run)
    return made


async def test_an_answer_is_good_for_one_environment_and_the_states_that_workers_are_in(asked: Asked) -> None:
    now = 100.0
    devices = GgmlDevices(clock=lambda: now)
    question = Question.of({"GGML_VK_VISIBLE_DEVICES": "0"}, [("a", "loading")])
    assert devices.known(question) is None
    await devices.ask(question)
    assert devices.known(question) == (RX,)
    assert asked.envs == [{"GGML_VK_VISIBLE_DEVICES": "0"}]
    assert devices.known(Question.of({}, [("a", "loading")])) is None
    assert devices.known(Question.of(dict(question.env), [("a", "ready")])) is None, "it has loaded since"
    now += 6
    assert devices.known(question) is None


@pytest.mark.parametrize(
    "failure", [RemoteError(ErrorCode.HELPER_FAILED, "devices ended with status -11"), TimeoutError("60 s")]
)
async def test_a_driver_that_ends_the_process_is_no_gpu(asked: Asked, failure: Exception) -> None:
    asked.answer = failure
    devices, question = GgmlDevices(), Question.of({}, [])
    await devices.ask(question)
    assert devices.known(question) == ()


@pytest.mark.model
async def test_the_real_process_tells_what_ggml_finds() -> None:
    """No GPU here that ggml would use by itself, or some: the process ends well, and what it says can be read."""
    devices, question = GgmlDevices(), Question.of({}, [])
    await devices.ask(question)
    found = devices.known(question)
    assert found is not None
    assert all(gpu.id and 0 <= gpu.free_mb <= gpu.total_mb for gpu in found)


def test_vulkan_does_not_give_what_the_environment_hides() -> None:
    """A batch system that grants one GPU of several by CUDA_VISIBLE_DEVICES, and a runtime that has Vulkan alone."""
    there = [Gpu(0, "RTX 4090", 24000, 23000), Gpu(1, "RTX 3090", 24000, 23000)]
    ggml = [Gpu(number, name, 24000, 23000, vendor=GGML) for number, name in enumerate(("RTX 3090", "RTX 4090", "RX"))]
    assert not_hidden(ggml, there, there, {}) == tuple(ggml)
    assert not_hidden(ggml, there, there[:1], {}) == (ggml[1], ggml[2])
    assert not_hidden(ggml, there, [], {}) == (ggml[2],)
    assert not_hidden(ggml, there, [], {"GGML_VK_VISIBLE_DEVICES": "0"}) == tuple(ggml)
    placed = [replace(gpu, pci=f"0000:0{gpu.index}:00.0") for gpu in there]
    twins = [
        replace(gpu, name="RTX 4090", pci=place) for gpu, place in zip(ggml, ("", "0000:01:00.0", "x"), strict=True)
    ]
    same = [replace(gpu, name="RTX 4090") for gpu in placed]
    assert not_hidden(twins[1:], same, same[:1], {}) == (twins[2],), "the bus tells which of like ones it is"
    like = [replace(gpu, name="RTX 4090") for gpu in there]
    assert not_hidden(ggml, like, like[:1], {}) == (ggml[0], ggml[2]), "which of the two it is nobody can tell"


@pytest.mark.parametrize("variable", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_vulkan_does_not_give_an_amd_gpu_that_its_own_variables_hide(variable: str) -> None:
    """The kernel names it in another way than Vulkan's driver; what both know is its place on the bus."""
    there = [Gpu(n, "Instinct MI210", 64000, 63000, vendor="amd", pci=f"0000:c{n}:00.0") for n in (0, 1)]
    name = "AMD Instinct MI210 (RADV ALDEBARAN)"
    intel = Gpu(2, "Intel(R) Arc(tm) A770", 16000, 16000, vendor=GGML, pci="0000:0a:00.0")
    ggml = [Gpu(n, name, 64000, 63000, vendor=GGML, pci=f"0000:c{1 - n}:00.0") for n in (0, 1)]
    env = {variable: "1"}
    shown = visible(there, env).gpus
    assert not_hidden([*ggml, intel], there, shown, env) == (ggml[0], intel)
    unplaced = [replace(gpu, pci="") for gpu in (*ggml, intel)]
    assert not_hidden(unplaced, there, shown, env) == (unplaced[2],), "which of them it is nobody can tell"
    assert not_hidden([*ggml, intel], there, shown, env | {"GGML_VK_VISIBLE_DEVICES": "0"}) == (*ggml, intel)
    cuda = {"CUDA_VISIBLE_DEVICES": ""}
    assert not_hidden(ggml, there, visible(there, cuda).gpus, cuda) == tuple(ggml), "that is CUDA's"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_place_of_a_device_on_the_bus_is_read_as_ggml_lays_it_out(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from rbee_remote.worker.llama.backends import Device
    from rbee_remote.worker.llama.device_list import _pci

    source = """#include <stdbool.h>
    #include <stddef.h>
    struct caps { bool a, b, c, d, e; };
    struct props { const char *n, *d; size_t f, t; int type; const char *id; struct caps caps; };
    void ggml_backend_dev_get_props(char *device, struct props *p) {
      p->type = 1; p->id = device ? "0000:c1:00.0" : NULL; p->caps.e = true; }"""
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.c"], check=True)
    lib = ctypes.CDLL(str(tmp_path / "a.so"))
    device = Device(0, 1, "vulkan", "RX")
    assert [_pci(lib, replace(device, handle=handle)) for handle in (1, 0)] == ["0000:c1:00.0", ""]
