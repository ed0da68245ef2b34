"""How many physical cores this process may use: what a worker computes with when nobody else is there."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Physical cores within the affinity mask and the cgroup's CPU quota, at least 1.

    Hyper-threads share the units that llama.cpp keeps busy, so a second thread on a core gains nothing.
    """
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = physical_cores(os.sched_getaffinity(0), Path("/sys/devices/system/cpu"))
    quota = cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, int(quota)))


def physical_cores(cpus: set[int], root: Path) -> int:
    """Distinct cores behind the logical `cpus`. root: /sys/devices/system/cpu."""
    siblings = set()
    for cpu in cpus:
        topology = root / f"cpu{cpu}" / "topology"
        siblings.add(_read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list") or str(cpu))
    return max(1, len(siblings))


def cgroup_quota(membership: Path, root: Path) -> float | None:
    """CPUs that the cgroup and its parents allow, None for no limit. membership: /proc/self/cgroup."""
    limits = []
    for line in _read(membership).splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2: one hierarchy
            base = root
        elif "cpu" in controllers.split(","):
            base = root / controllers
        else:
            continue
        path = base / group.lstrip("/")
        for folder in (path, *path.parents):
            limits.append(_limit(folder))
            if folder == base:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():  # "max", or -1 in version 1
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # which files exist depends on the kernel and on the cgroup's version
        return ""
