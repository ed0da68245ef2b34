"""What NVIDIA's driver says is understood: by nvidia-smi of several ages, by libcuda alone, and by neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.node import nvidia
from rbee.node.diagnosis import ConnectionFacts, findings
from rbee.node.nvidia import Card
from rbee.node.probe import Gpu, Probe, parse, script
from rbee.setup.base.platforms import Target
from tests.patience import PATIENCE_S

TIMEOUT = shutil.which("timeout")
CC = shutil.which("cc")

#: libcuda of a machine with one L4 and a driver for CUDA 12.4.
LIBCUDA = r"""
#include <string.h>
#include <stddef.h>
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *device, int i) { *device = i; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA L4", size); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)23034 << 20; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 9; return 0; }
"""

#: nvidia-smi: $KNOWS_COMPUTE is what it has of the capability, "" for a driver before 510.
SMI = """#!/bin/sh
case "$*" in
  *compute_cap*) [ -n "$KNOWS_COMPUTE" ] || { echo 'Field "compute_cap" is not a valid field to query.'; exit 2; }
    echo "NVIDIA A100-SXM4-40GB, 40960, 40000, 550.54.15, $KNOWS_COMPUTE" ;;
  *query-gpu*) echo "Tesla V100, 16384, 16000, 470.82.01" ;;
  *) echo "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15      CUDA Version: 11.4     |" ;;
esac
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVIDIA L4, 23034, 22500, 550.54.15, 8.9", [Card("NVIDIA L4", 24152, 23592, "550.54.15", (8, 9))]),
        ("Tesla V100, 16384, 16000, 470.82.01", [Card("Tesla V100", 17179, 16777, "470.82.01")]),
        ("A, B, 1024, 512, 580.65.06, 12.0", [Card("A, B", 1073, 536, "580.65.06", (12, 0))]),
        ("NVIDIA GB10, [N/A], [N/A], 580.95, 12.1", [Card("NVIDIA GB10", 0, 0, "580.95", (12, 1))]),
        ("NVIDIA L4, 23034, 0, , 8.9", [Card("NVIDIA L4", 24152, 0, "", (8, 9))]),
        ("No devices were found", []),
        ("", []),
    ],
)
def test_lines_of_drivers_of_several_ages_are_understood(line: str, expected: list[Card]) -> None:
    assert list(nvidia.cards([line])) == expected


@given(st.text(max_size=60))
def test_nothing_that_a_node_says_breaks_the_probe(text: str) -> None:
    found = list(nvidia.cards([text]))
    assert len(found) <= 1
    assert all(card.memory_total_mb >= 0 for card in found)
    assert nvidia.version(text) == () or all(number < 100 for number in nvidia.version(text))


def test_nvidia_smi_is_asked_and_what_it_does_not_know_is_left_open(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    smi = tools / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    found = _probed(tmp_path, PATH=f"{tools}:{os.environ['PATH']}", KNOWS_COMPUTE="8.0")
    assert found.gpus[:1] == (Gpu("nvidia", "NVIDIA A100-SXM4-40GB", 42949, 41943, "550.54.15", (8, 0)),)
    old = _probed(tmp_path, PATH=f"{tools}:{os.environ['PATH']}", KNOWS_COMPUTE="")
    assert old.gpus[:1] == (Gpu("nvidia", "Tesla V100", 17179, 16777, "470.82.01"),)
    if not Path("/usr/lib/wsl/lib/libcuda.so.1").exists() and found.cuda == old.cuda:
        assert found.cuda == (11, 4)


@pytest.mark.skipif(TIMEOUT is None, reason="needs timeout of coreutils")
def test_an_nvidia_smi_that_floods_or_cannot_be_ended_does_not_take_the_probe_along(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    smi = tools / "nvidia-smi"
    smi.write_text("#!/bin/sh\ntrap '' TERM HUP\nwhile :; do sleep 1; done\n")
    smi.chmod(0o755)
    patience = f'case $1 in -k) shift 3; exec {TIMEOUT} -k 0.1 0.5 "$@" ;; *) shift; exec {TIMEOUT} 0.5 "$@" ;; esac'
    (tools / "timeout").write_text(f"#!/bin/sh\n{patience}\n")
    (tools / "timeout").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    assert _probed(tmp_path, PATH=path).home == str(tmp_path / "node")
    (tools / "timeout").unlink()
    smi.write_text("#!/bin/sh\nyes 'A100, 40960, 40000, 550.54.15, 8.0' | head -n 300000\n")
    assert len(_probed(tmp_path, PATH=path).gpus) == 64


@pytest.mark.skipif(TIMEOUT is None, reason="needs timeout of coreutils")
@pytest.mark.parametrize("hangs", ["compute_cap", "libcuda"])
def test_a_driver_whose_calls_nobody_can_kill_ends_the_look_soon_and_what_it_said_counts(
    tmp_path: Path, hangs: str
) -> None:
    """What is in the kernel without end (state D) outlives SIGKILL, and `timeout` waits for it: so does this one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    waits = f'case "$*" in *{hangs}*) trap "" TERM; sleep 30 & wait; exit ;; esac'
    (tools / "timeout").write_text(f'#!/bin/sh\n{waits}\nexec {TIMEOUT} "$@"\n')
    for name in ("nvidia-smi", "timeout"):
        (tools / name).chmod(0o755)
    began = time.monotonic()
    found = _probed(tmp_path, 1.0, PATH=f"{tools}:{os.environ['PATH']}", KNOWS_COMPUTE="8.0")
    assert time.monotonic() - began < 29, "nothing of it is waited for, nor what it holds open"
    assert found.nvidia_hangs
    seen = [gpu.name for gpu in found.gpus if gpu.vendor == "nvidia"]
    assert seen == ([] if hangs == "compute_cap" else ["NVIDIA A100-SXM4-40GB"])
    told = findings(found, ConnectionFacts(local=False, forwarding=None))
    warned = [finding for finding in told if finding.title == "idle GPU"]
    assert [finding.detail for finding in warned] == (
        ["NVIDIA's GPU: its driver does not answer in time"] if hangs == "compute_cap" else []
    )


def test_a_driver_that_answers_is_not_waited_for_and_leaves_nothing_running(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    limit = 39.517
    found = _probed(tmp_path, limit, PATH=f"{tools}:{os.environ['PATH']}", KNOWS_COMPUTE="8.0")
    assert not found.nvidia_hangs
    deadline = time.monotonic() + PATIENCE_S
    while _sleeps(limit):
        assert time.monotonic() < deadline, "the clock of a look that is over"
        time.sleep(0.05)


def _sleeps(seconds: float) -> bool:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(file.read_bytes())
    return f"sleep\0{seconds:g}\0".encode() in lines


@pytest.mark.skipif(CC is None or shutil.which("nvidia-smi") is not None, reason="needs cc, and no nvidia-smi")
def test_without_nvidia_smi_the_drivers_library_is_asked(tmp_path: Path) -> None:
    assert CC is not None
    (tmp_path / "cuda.c").write_text(LIBCUDA)
    subprocess.run(
        [CC, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True, timeout=60
    )
    found = _probed(tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert found.cuda == (12, 4)
    assert found.gpus[:1] == (Gpu("nvidia", "NVIDIA L4", 24152, 0, "", (8, 9)),)
    target = Target.of(found, (3, 11))
    assert (target.cuda, target.gpus) == ((12, 4), {(8, 9)})


@pytest.mark.parametrize(
    ("free_mb", "gpus", "level"),
    [(1400, (), "warn"), (1400, (Gpu("nvidia", "NVIDIA L4"),), "fail"), (1600, (Gpu("nvidia", "NVIDIA L4"),), "warn")],
)
def test_cudas_libraries_count_in_what_a_runtime_takes_of_the_disk(
    free_mb: int, gpus: tuple[Gpu, ...], level: str
) -> None:
    told = findings(
        Probe(system="Linux", home="/h", disk_free_mb=free_mb, gpus=gpus), ConnectionFacts(local=False, forwarding=None)
    )
    assert [finding.level for finding in told if finding.title == "disk"] == [level]


def _probed(home: Path, limit_s: float = nvidia.LIMIT_S, **variables: str) -> Probe:
    text = script(str(home / "node")).replace(nvidia.script(), nvidia.script(limit_s))
    told = subprocess.run(
        ["/bin/sh"],
        input=text.encode(),
        capture_output=True,
        env={**os.environ, "HOME": str(home), **variables},
        check=True,
        timeout=60,
    )
    return parse(told.stdout)
