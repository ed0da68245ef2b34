"""What `rbee nodes check` says of GPUs: from answers of the driver (`tests/doubles/nvml`) to findings with fixes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.node import gpu_diagnosis
from rbee.node.diagnosis import ConnectionFacts
from rbee.node.diagnosis import findings as all_findings
from rbee.node.finding import Finding
from rbee.node.probe import Gpu, Probe
from rbee_remote.protocol import GpuReport, decode, encode
from rbee_remote.protocol.gpus import GpuHolder, GpuSeen, GpuSilent, PciGpu, Reason, Xid
from rbee_remote.system import gpu_kernel, gpu_report
from tests.doubles import nvml

H100 = GpuSeen("CUDA0", 0, "H100", "nvidia", 80000, 79000, ecc=True, ecc_errors=0, persistence=True)
HEALTHY = GpuReport(driver="550.54.15", cuda="12.4", gpus=(H100,), log_read=True)


@pytest.fixture(autouse=True)
def no_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine that runs the tests has is out of it."""
    monkeypatch.setattr(gpu_report, "amd_gpus", lambda: iter(()))
    monkeypatch.setattr(gpu_kernel, "log_lines", list)
    monkeypatch.setattr(gpu_kernel, "on_bus", lambda: ())


def of_fixture(monkeypatch: pytest.MonkeyPatch, name: str, env: dict[str, str] | None = None) -> list[Finding]:
    nvml.install(monkeypatch, name)
    report = gpu_report.report(env or {})
    assert decode(GpuReport, encode(report)) == report
    found = gpu_diagnosis.findings(report)
    assert all(bool(finding.fix) == (finding.level != "ok") for finding in found)
    return found


def warnings(found: list[Finding]) -> list[str]:
    return [finding.title for finding in found if finding.level != "ok"]


def test_a_healthy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = of_fixture(monkeypatch, "healthy")
    detail = "CUDA0 NVIDIA H100 80GB HBM3 (84918 of 85520 MB free); driver 550.54.15, CUDA 12.4"
    assert finding == Finding("ok", "GPUs", detail)


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("two", ["CUDA0 memory", "GPU 0 persistence"]),
        ("one_lost", ["GPU 0", "GPU 1 ECC"]),
        ("mig", ["GPU 1", "GPU 0 ECC"]),
        ("integrated", []),
        ("unwell", ["GPU 0", "GPU 1", "GPU 2", "GPU 3", "CUDA4 compute mode", "GPU 5 ECC"]),
        ("mismatch", ["NVIDIA driver"]),
    ],
)
def test_each_trouble_is_named(monkeypatch: pytest.MonkeyPatch, name: str, titles: list[str]) -> None:
    assert warnings(of_fixture(monkeypatch, name)) == titles


def test_a_driver_that_hangs_is_no_absence_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "_TIMEOUT_S", 0.05)
    driver, gpus = of_fixture(monkeypatch, "hangs")
    assert (driver.level, driver.detail) == ("warn", "it does not answer in time")
    assert gpus.detail == "none answers: models run on the CPU"


def test_who_holds_the_memory_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = nvml.fixture("two").read_text().replace("4711", str(os.getpid()))
    (tmp_path / "two.txt").write_text(answers)
    nvml.install(monkeypatch, tmp_path / "two.txt")
    found = gpu_diagnosis.findings(gpu_report.report({}))
    taken = next(finding for finding in found if finding.title == "CUDA0 memory")
    assert taken.detail.startswith(f"23610 of 25757 MB are held by pid {os.getpid()} (")
    assert "python" in taken.detail
    assert "pid 1200 (not to be seen from here, 300 MB)" in taken.detail  # its windows, as an older driver tells


def test_a_gpu_for_one_process_is_not_taken_for_one_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    (mode,) = [each for each in of_fixture(monkeypatch, "unwell") if each.title == "CUDA4 compute mode"]
    assert mode.detail.startswith("EXCLUSIVE_PROCESS lets one process compute, and that is pid 4711 (")
    assert mode.fix == "as root: nvidia-smi -i 4 -c DEFAULT (or 0)"
    (alone,) = gpu_diagnosis.findings(replace(HEALTHY, gpus=(replace(H100, exclusive=True),)))[1:]
    assert "one worker" in alone.detail


def test_what_workers_of_rbee_hold_is_not_taken_by_others() -> None:
    held = replace(H100, free_mb=1000, holders=(GpuHolder(1, 78000, "python", "vince", ours=True),))
    assert warnings(gpu_diagnosis.findings(replace(HEALTHY, gpus=(held,)))) == []
    held = replace(held, holders=(*held.holders, GpuHolder(2, None, "train.py", "ann")), free_mb=0, total_mb=180000)
    (finding,) = gpu_diagnosis.findings(replace(HEALTHY, gpus=(held,)))[1:]
    assert finding.detail == "102000 of 180000 MB are held by pid 2 (train.py, ann)"


@pytest.mark.parametrize("reason", [*Reason, "a word of a newer node"])
def test_every_reason_has_its_fix(reason: str) -> None:
    word = getattr(reason, "value", reason)
    found = gpu_diagnosis.findings(replace(HEALTHY, silent=(GpuSilent(3, word, "as the driver says"),)))
    (silent,) = [finding for finding in found if finding.title == "GPU 3"]
    assert "{n}" not in silent.fix
    assert silent.fix
    whole = gpu_diagnosis.findings(
        GpuReport(reason=word, said="x", on_bus=(PciGpu("nvidia", "0000:01:00.0", "nvidia"),))
    )
    assert warnings(whole) == ([] if reason == Reason.NO_BINDING else ["NVIDIA driver"])


def test_a_gpu_without_its_driver_is_told_from_no_gpu() -> None:
    bare = GpuReport(reason=Reason.NO_LIBRARY.value)
    assert gpu_diagnosis.findings(bare) == [Finding("ok", "GPUs", "none was found: models run on the CPU")]
    held = replace(bare, on_bus=(PciGpu("nvidia", "0000:01:00.0", "nouveau"),))
    for unasked in (held, replace(held, reason=Reason.NO_BINDING.value)):
        driver, gpus = gpu_diagnosis.findings(unasked)
        assert driver.detail == "it is not installed (the kernel gave the GPU to nouveau)"
        assert gpus.detail == "NVIDIA at 0000:01:00.0, whose driver tells nothing: models run on the CPU"
    bare = GpuReport(reason=Reason.NO_BINDING.value, on_bus=(PciGpu("nvidia", "0000:01:00.0", "nvidia"),))
    assert gpu_diagnosis.findings(bare)[0].detail.endswith("what it is shows once rbee has run there")


@pytest.mark.parametrize(
    ("cuda", "cudart", "expected"),
    [
        ("12.4", (), ""),
        ("12.4", (12,), ""),
        ("12.4", (12, 13), ""),
        ("12.4", (13,), "install driver 580 or newer, or CUDA's runtime library of version 12"),
        ("13.0", (12,), ""),
        ("11.4", (), "install driver 525 or newer"),
        ("", (13,), ""),
    ],
)
def test_a_driver_older_than_the_runtime(cuda: str, cudart: tuple[int, ...], expected: str) -> None:
    found = gpu_diagnosis.findings(replace(HEALTHY, cuda=cuda), frozenset(cudart))
    assert "".join(finding.fix for finding in found) == expected


def test_what_the_environment_hides() -> None:
    hidden = replace(HEALTHY, gpus=(replace(H100, visible=False),), limits="CUDA_VISIBLE_DEVICES=")
    assert warnings(gpu_diagnosis.findings(hidden)) == ["visible GPUs"]
    shown = replace(HEALTHY, limits="CUDA_VISIBLE_DEVICES=0 (Slurm job 7)")
    assert gpu_diagnosis.findings(shown)[1].detail == "CUDA_VISIBLE_DEVICES=0 (Slurm job 7) leaves CUDA0 of 1"


def test_the_kernels_log_tells_of_errors() -> None:
    lines = [
        "[   12.3] NVRM: Xid (PCI:0000:65:00): 31, pid=812, name=python, Ch 00000008, intr 10000000. MMU Fault",
        "[   99.9] NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "[  100.0] NVRM: GPU 0000:65:00.0: GPU has fallen off the bus.",
        "[  101.0] NVRM: Xid (PCI:0000:65:00): 79, again",
    ]
    found = gpu_kernel.xids(lines)
    assert [(xid.code, xid.pci, xid.count, xid.text[:5]) for xid in found] == [
        (31, "0000:65:00", 1, "pid=8"),
        (79, "0000:65:00", 2, "again"),
    ]
    program, hardware = gpu_diagnosis.findings(replace(HEALTHY, xids=found))[1:]
    assert (program.level, hardware.level) == ("ok", "warn")
    assert hardware.detail == "PCI 0000:65:00: it fell off the bus, 2 times since boot: again"
    assert Xid(79, "0000:65:00", 2, "again") == found[1]


def test_a_log_that_cannot_be_read_is_not_taken_for_one_without_errors() -> None:
    assert [finding.title for finding in gpu_diagnosis.findings(replace(HEALTHY, log_read=False))] == [
        "GPUs",
        "kernel log",
    ]


def test_the_report_stands_for_what_the_probe_saw_where_it_tells_more() -> None:
    probe = Probe(system="Linux", home="/h", gpus=(Gpu("nvidia", "H100"),))
    facts = ConnectionFacts(local=True, forwarding=None)

    def of_gpus(report: GpuReport | None) -> list[str]:
        return [finding.detail for finding in all_findings(probe, facts, report) if finding.title == "GPUs"]

    assert of_gpus(None) == of_gpus(GpuReport(reason="no_binding")) == ["H100"]
    assert of_gpus(HEALTHY) == ["CUDA0 H100 (79000 of 80000 MB free); driver 550.54.15, CUDA 12.4"]
