"""How busy GPUs are, through the real pynvml, and as the kernel tells of AMD's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_remote.protocol import GpuLoad
from rbee_remote.system.gpu_use import gpu_loads
from tests.doubles import nvml

H100 = GpuLoad("CUDA0", "NVIDIA H100 80GB HBM3", 85520, 602, 0.63)
KFD = "class/kfd/kfd/topology/nodes"


def write(sys: Path, name: str, text: str) -> None:
    (sys / name).parent.mkdir(parents=True, exist_ok=True)
    (sys / name).write_text(text)


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """An AMD GPU that computes half of the time."""
    write(tmp_path, f"{KFD}/1/properties", "simd_count 240\ndrm_render_minor 200\ncpu_cores_count 0\n")
    write(tmp_path, f"{KFD}/1/name", "gfx1100\n")
    device = tmp_path / "devices/0000:c1:00.0"
    write(tmp_path, "devices/0000:c1:00.0/mem_info_vram_total", "24000000000")
    write(tmp_path, "devices/0000:c1:00.0/mem_info_vram_used", "6000000000")
    write(tmp_path, "devices/0000:c1:00.0/gpu_busy_percent", "50\n")
    for link in ("class/drm/renderD200/device", "bus/pci/devices/0000:c1:00.0"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(device)
    return tmp_path


def test_both_makers_say_how_busy_their_gpus_are(monkeypatch: pytest.MonkeyPatch, sys: Path) -> None:
    nvml.install(monkeypatch, "healthy")
    amd = GpuLoad("ROCm0", "AMD GPU gfx1100", 24000, 6000, 0.5)
    assert gpu_loads({}, sys) == (H100, amd)


def test_what_the_environment_hides_is_not_told(monkeypatch: pytest.MonkeyPatch, sys: Path) -> None:
    nvml.install(monkeypatch, "healthy")
    assert [gpu.id for gpu in gpu_loads({"CUDA_VISIBLE_DEVICES": ""}, sys)] == []  # HIP follows it as well


@pytest.mark.parametrize("fixture", ["one_lost", "mig"])
def test_what_does_not_say_has_no_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fixture: str) -> None:
    nvml.install(monkeypatch, fixture)
    found = gpu_loads({}, tmp_path)
    assert found
    assert {gpu.use for gpu in found} == {None}


def test_where_there_is_no_gpu_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rbee_remote.system.gpu_nvml.gpus", lambda *_: ())
    assert gpu_loads({}, tmp_path) == ()


@pytest.mark.parametrize("said", ["", "-1", "many"])
def test_what_the_kernel_cannot_say_is_nothing(sys: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr("rbee_remote.system.gpu_nvml.gpus", lambda *_: ())
    (sys / "devices/0000:c1:00.0/gpu_busy_percent").write_text(said)
    assert [gpu.use for gpu in gpu_loads({}, sys)] == [None]
