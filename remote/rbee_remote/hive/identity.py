"""Who a process is. A pid alone says little: it is used again. With boot id and start time it names one process."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """start_ticks: clock ticks from boot to the start of the process; elsewhere than Linux hundredths of Unix time."""

    pid: int
    start_ticks: int
    boot_id: str


@functools.cache
def boot_id() -> str:
    """A name for this boot of the machine; the same for every process until it restarts."""
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text().strip()
    boot_time = subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, check=True).stdout
    return hashlib.sha256(boot_time).hexdigest()[:32]


def start_ticks(pid: int) -> int | None:
    """None when there is no such process (a zombie still is one)."""
    if _BOOT_ID.exists():
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the name in parentheses may contain anything; starttime is field 22, the 20th after it.
        return int(text.rpartition(")")[2].split()[19])
    return _start_hundredths(pid)


def _start_hundredths(pid: int) -> int | None:
    import psutil

    try:
        created: float = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    return round(created * 100)


def identify(pid: int) -> ProcessIdentity:
    """Raises ProcessLookupError when there is no such process."""
    ticks = start_ticks(pid)
    if ticks is None:
        raise ProcessLookupError(f"no process {pid}")
    return ProcessIdentity(pid, ticks, boot_id())


def is_same_process(identity: ProcessIdentity) -> bool:
    """Whether the process that was identified still exists, and not another one with its pid."""
    return identity.boot_id == boot_id() and start_ticks(identity.pid) == identity.start_ticks
