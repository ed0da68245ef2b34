"""Who holds a GPU's memory, by name: what NVML knows as a number."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

from rbee_remote.protocol.gpus import GpuHolder
from rbee_remote.system.command import read_command
from rbee_remote.system.gpu_nvml import running

MB = 10**6
_MOST_TEXT = 80


def holders(nvml: Any, handle: Any, proc: Path = Path("/proc")) -> tuple[GpuHolder, ...]:
    """The largest first. Computing and drawing alike: a desktop takes memory, too."""
    bytes_of = running(nvml, handle, "Graphics") | running(nvml, handle)
    found = [describe(pid, taken, proc) for pid, taken in bytes_of.items()]
    return tuple(sorted(found, key=lambda holder: -(holder.mb or 0)))


def describe(pid: int, taken: int | None, proc: Path) -> GpuHolder:
    """taken: bytes. In a container the driver may name the host's processes, which are not to be seen here."""
    mb = None if taken is None else taken // MB
    folder = proc / str(pid)
    try:
        argv = [word.decode(errors="replace") for word in (folder / "cmdline").read_bytes().split(b"\0")[:-1]]
        uid = folder.stat().st_uid
    except OSError:
        return GpuHolder(pid, mb)
    command = read_command(argv)
    name = " ".join(argv[:3])[:_MOST_TEXT]
    return GpuHolder(pid, mb, name, _user(uid), ours=command is not None and command.command == "worker")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
