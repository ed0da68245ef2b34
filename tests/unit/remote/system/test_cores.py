"""Which cores count: none twice, and none that the process may not use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbee_remote.system import cores


def write(files: dict[str, str], root: Path) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def siblings(*groups: str) -> dict[str, str]:
    return {f"cpu{cpu}/topology/core_cpus_list": group + "\n" for cpu, group in enumerate(groups)}


@pytest.mark.parametrize(
    ("files", "allowed", "expected"),
    [
        (siblings("0-1", "0-1", "2-3", "2-3"), {0, 1, 2, 3}, 2),
        (siblings("0-1", "0-1", "2-3", "2-3"), {1, 2}, 2),
        (siblings("0-1", "0-1", "2-3", "2-3"), {2, 3}, 1),
        (siblings("0", "1"), {0, 1}, 2),
        ({"cpu0/topology/thread_siblings_list": "0,1", "cpu1/topology/thread_siblings_list": "0,1"}, {0, 1}, 1),
        ({}, {0, 1, 2}, 3),
        ({}, set(), 1),
    ],
)
def test_physical_cores(files: dict[str, str], allowed: set[int], expected: int, tmp_path: Path) -> None:
    assert cores.physical_cores(allowed, write(files, tmp_path)) == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, 1.0),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
        ("4:memory:/x\n3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1"}, None),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            3.0,
        ),
    ],
)
def test_cgroup_quota(membership: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text(membership)
    assert cores.cgroup_quota(own, write(files, tmp_path / "fs")) == expected


def test_no_cgroup_file_is_no_limit(tmp_path: Path) -> None:
    assert cores.cgroup_quota(tmp_path / "missing", tmp_path) is None


def test_this_machine() -> None:
    assert 1 <= cores.usable_cores() <= (os.cpu_count() or 1)
