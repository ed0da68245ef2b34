"""What is read of NVIDIA's GPUs, through the real pynvml."""

from __future__ import annotations

import threading
from pathlib import Path

import pynvml
import pytest

from rbee_remote.protocol.gpus import Reason
from rbee_remote.system import gpu_nvml
from rbee_remote.system.gpu import Gpu, SilentGpu
from rbee_remote.system.gpu_awake import StayAwake
from tests.doubles import nvml
from tests.patience import PATIENCE_S

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 85520, 84918, uuid="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
A100 = Gpu(1, "NVIDIA A100-SXM4-40GB", 42949, 42300, uuid="GPU-5c2a8e0f-1b9d-4f52-9d3a-7a8f1f6c0b77")
MIG_PARENT = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"


def read(meminfo: Path = Path("/proc/meminfo")) -> list[Gpu | SilentGpu]:
    with gpu_nvml.opened() as library:
        assert not isinstance(library, gpu_nvml.Trouble)
        return [seen.gpu if isinstance(seen, gpu_nvml.Seen) else seen for seen in gpu_nvml.gpus(library, meminfo)]


def test_a_healthy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "healthy")
    assert read() == [H100]
    assert H100.id == "CUDA0"


def test_one_that_has_fallen_off_the_bus_does_not_hide_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "one_lost")
    assert read() == [SilentGpu(0, Reason.LOST, "GPU is lost"), A100]


def test_instances_stand_for_the_gpu_that_mig_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "mig")
    large, small, empty = read()
    assert isinstance(large, Gpu)
    assert isinstance(small, Gpu)
    assert (large.id, large.total_mb, large.parent) == ("CUDA0.0", 20937, MIG_PARENT)
    assert large.part == "2/0"
    assert (small.id, small.visible_as) == ("CUDA0.2", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb")
    assert isinstance(empty, SilentGpu)
    assert (empty.index, empty.reason) == (1, Reason.NO_INSTANCE)


def test_an_integrated_gpu_has_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml.install(monkeypatch, "integrated")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       125000000 kB\nMemAvailable:   100000000 kB\nHugePages_Total: 0\n")
    (gpu,) = read(meminfo)
    assert isinstance(gpu, Gpu)
    assert (gpu.integrated, gpu.total_mb, gpu.free_mb) == (True, 128000, 102400)


def test_each_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "unwell")
    *silent, exclusive, well = read()
    reasons = [gpu.reason for gpu in silent if isinstance(gpu, SilentGpu)]
    assert reasons == [Reason.UNSUPPORTED, Reason.PERMISSION, Reason.PROHIBITED, Reason.RESET]
    assert isinstance(exclusive, Gpu)
    assert isinstance(well, Gpu)
    assert (exclusive.free_mb, well.free_mb) == (0, 15900)  # in exclusive mode, another process has it
    assert (exclusive.reserved, well.reserved) == (True, False)


def test_a_gpus_place_on_the_bus_is_written_as_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "two")
    assert [each.pci for each in read() if isinstance(each, Gpu)] == ["0000:3b:00.0", "0001:d8:00.0"]
    nvml.install(monkeypatch, "healthy")  # a driver that does not say it
    assert [each.pci for each in read() if isinstance(each, Gpu)] == [""]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("init !18\n", Reason.MISMATCH), ("init !9\n", Reason.NOT_LOADED), ("init !999\n", Reason.UNKNOWN)],
)
def test_a_driver_that_tells_nothing_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: Reason
) -> None:
    (tmp_path / "answers").write_text(text)
    nvml.install(monkeypatch, tmp_path / "answers")
    with gpu_nvml.opened() as library:
        assert isinstance(library, gpu_nvml.Trouble)
        assert library.reason is reason


def test_a_driver_without_gpus_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, text in enumerate(["count 0\n", "count !999\n"]):
        (tmp_path / str(number)).write_text(text)
        nvml.install(monkeypatch, tmp_path / str(number))
        assert read() == []


def test_the_driver_is_kept_awake_for_a_while_and_then_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "two")
    closed, uses = threading.Event(), list[str]()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: uses.append("opened"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", closed.set)
    stay = StayAwake(1.0)
    stay()
    stay()
    assert uses == ["opened"], "each call opened the driver anew"
    assert not closed.is_set()
    assert closed.wait(PATIENCE_S)
