"""What is read of GPUs without a library: sysfs, /proc, nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_remote.protocol.gpus import GpuHolder, PciGpu, Reason
from rbee_remote.system import gpu_smi, gpu_users
from rbee_remote.system.gpu import Gpu, SilentGpu
from rbee_remote.system.gpu_holders import describe
from rbee_remote.system.gpu_kernel import loaded_module, on_bus
from rbee_remote.system.gpu_sysfs import amd_gpus
from tests.doubles import nvml


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_bus_shows_gpus_that_no_driver_has(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "bus/pci/devices/0000:65:00.0/vendor": "0x10de\n",
            "bus/pci/devices/0000:65:00.0/class": "0x030200\n",
            "bus/pci/devices/0000:65:00.1/vendor": "0x10de\n",
            "bus/pci/devices/0000:65:00.1/class": "0x040300\n",  # its sound
            "bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
            "bus/pci/devices/0000:00:02.0/class": "0x030000\n",
            "bus/pci/drivers/i915/bind": "",
        },
    )
    (tmp_path / "bus/pci/devices/0000:00:02.0/driver").symlink_to(tmp_path / "bus/pci/drivers/i915")
    assert on_bus(tmp_path) == (PciGpu("intel", "0000:00:02.0", "i915"), PciGpu("nvidia", "0000:65:00.0"))
    assert on_bus(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n", "570.86.10"),
        ("nonsense", ""),
    ],
)
def test_the_version_of_the_loaded_module(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, {"driver/nvidia/version": text})
    assert loaded_module(tmp_path) == expected


KFD = "class/kfd/kfd/topology/nodes"


def test_amd_gpus_are_those_of_the_topology_that_compute(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{KFD}/0/properties": "cpu_cores_count 16\nsimd_count 0\n",
            f"{KFD}/1/properties": "cpu_cores_count 0\nsimd_count 416\ndrm_render_minor 128\nunique_id 17563660288\n",
            f"{KFD}/1/name": "gfx90a\n",
            f"{KFD}/10/properties": "cpu_cores_count 8\nsimd_count 32\ndrm_render_minor 129\nunique_id 0\n",
            f"{KFD}/10/name": "raphael\n",
            "class/drm/renderD128/device/mem_info_vram_total": "68702699520\n",
            "class/drm/renderD128/device/mem_info_vram_used": "702699520\n",
            "class/drm/renderD128/device/product_name": "Instinct MI210\n",
        },
    )
    large, apu = amd_gpus(tmp_path, tmp_path / "dev")
    assert large == Gpu(0, "Instinct MI210", 68702, 68000, vendor="amd", uuid=f"GPU-{17563660288:016x}")
    assert isinstance(apu, Gpu)
    assert (apu.id, apu.name, apu.integrated, apu.visible_as) == ("ROCm1", "AMD GPU raphael", True, "1")
    assert list(amd_gpus(tmp_path / "none")) == []


def test_an_amd_gpus_place_on_the_bus_is_what_the_kernels_link_leads_to(tmp_path: Path) -> None:
    place = tmp_path / "devices/pci0000:00/0000:c1:00.0"
    place.mkdir(parents=True)
    write(tmp_path, {f"{KFD}/1/properties": "simd_count 416\ndrm_render_minor 128\n", "class/drm/renderD128/x": ""})
    (tmp_path / "class/drm/renderD128/device").symlink_to(place)
    (found,) = amd_gpus(tmp_path, tmp_path / "dev")
    assert isinstance(found, Gpu)
    assert found.pci == "0000:c1:00.0"


def test_an_amd_gpu_that_this_user_may_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {f"{KFD}/1/properties": "simd_count 416\ndrm_render_minor 128\n", "dev/dri/renderD128": ""})
    monkeypatch.setattr("rbee_remote.system.gpu_sysfs.os.access", lambda path, mode: False)
    assert list(amd_gpus(tmp_path, tmp_path / "dev")) == [
        SilentGpu(0, Reason.PERMISSION, str(tmp_path / "dev/dri/renderD128"))
    ]


SMI = """\
0, GPU-8932f937, NVIDIA H100, 81559, 80000, 550.54.15, Enabled, Enabled, 0, Exclusive_Process
1, GPU-2dee1e25-b3b5-007e-2b55-79f2d0f2ebe5, NVIDIA GB10, [N/A], [N/A], 550.54.15, Disabled, [N/A], [N/A], Default
Unable to determine the device handle for GPU2: 0000:65:00.0: Unknown Error
"""


def test_nvidia_smi_where_there_is_no_binding() -> None:
    report = gpu_smi.parse(SMI)
    first, second = report.gpus
    assert (report.driver, report.reason) == ("550.54.15", "")
    assert (first.id, first.total_mb, first.ecc, first.ecc_errors, first.persistence) == ("CUDA0", 85520, True, 0, True)
    assert (second.total_mb, second.ecc, second.ecc_errors, second.persistence) == (0, None, None, False)
    assert (first.exclusive, second.exclusive) == (True, False)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", Reason.MISMATCH),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure", Reason.NOT_LOADED),
        ("", Reason.UNKNOWN),
    ],
)
def test_nvidia_smi_says_why_it_tells_nothing(output: str, reason: Reason) -> None:
    assert gpu_smi.parse(output).reason == reason.value


@pytest.mark.parametrize("name", ['a "quoted', "A" * 200_000, "nul\0"])
@pytest.mark.parametrize("number", ["[N/A]", "[Not Supported]", "\u00b2", "9" * 5000, "80.5", "-1"])
def test_nonsense_of_nvidia_smi_is_not_said_and_hides_no_other_gpu(name: str, number: str) -> None:
    odd = f"0, GPU-1, {name}, {number}, {number}, 550.1, {number}, {number}, {number}, {number}"
    other = "1, GPU-2, H100, 81559, 80000, 550.1, Enabled, Enabled, 0, Default"
    report = gpu_smi.parse(f"{number}, x, y, 1, 1, 550.1, a, b, c, d\n{odd}\n{other}\n")
    assert [(gpu.index, gpu.total_mb, gpu.ecc_errors) for gpu in report.gpus] == [(0, 0, None), (1, 85520, 0)]


def test_a_worker_is_ours_and_what_cannot_be_seen_is_nobodys(tmp_path: Path) -> None:
    argv = ["/r/bin/python", "-I", "/h/payloads/0123456789abcdef.zip", "worker", "--id=1", "--home=/h"]
    write(tmp_path, {"7/cmdline": "\0".join(argv) + "\0", "8/cmdline": "python\0train.py\0"})
    ours, other = describe(7, 10**9, tmp_path), describe(8, None, tmp_path)
    assert (ours.ours, ours.mb) == (True, 1000)
    assert (other.ours, other.mb, other.command) == (False, None, "python train.py")
    assert describe(9, 5 * 10**6, tmp_path) == GpuHolder(9, 5)


def test_who_uses_gpus_is_known_although_one_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml.install(monkeypatch, "two")
    assert gpu_users.gpu_pids() == {4711, 4712}
    (tmp_path / "answers").write_text(nvml.fixture("one_lost").read_text() + "gpu1.process0 4713 1\n")
    nvml.install(monkeypatch, tmp_path / "answers")
    assert gpu_users.gpu_pids() == {4713}
    nvml.install(monkeypatch, "mismatch")
    assert gpu_users.gpu_pids() == frozenset()
