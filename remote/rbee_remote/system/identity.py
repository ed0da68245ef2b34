"""Who a process is. A pid alone says little: it is used again. With boot id and start time it names one process."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OWNER = re.compile(r"([1-9][0-9]{0,9})\.([0-9]{1,19})")


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
        fields = stat_fields(pid)
        return int(fields[START_TICKS]) if fields else None
    return _start_hundredths(pid)


#: Places in `stat_fields`: proc(5) has the state as field 3.
STATE, PARENT, GROUP, SESSION, START_TICKS, RSS_PAGES = 0, 1, 2, 3, 19, 21


def stat_fields(pid: int) -> list[str] | None:
    """What Linux tells of a process, from its state on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses before them may contain anything.
    return text.rpartition(b")")[2].decode().split()


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


def owner_tag(pid: int, ticks: int) -> str:
    """How a process's command line names the one that started it, on this boot: `PID.START_TICKS`."""
    return f"{pid}.{ticks}"


def read_owner(tag: str) -> tuple[int, int] | None:
    """(pid, start_ticks); None for what is no tag."""
    match = _OWNER.fullmatch(tag)
    return (int(match[1]), int(match[2])) if match else None


def own_tag() -> str:
    """The option for the command line of what this process starts. A clean-up knows by it whose it is, and ends it
    only when this very process is gone."""
    own = identify(os.getpid())
    return f"--owner={owner_tag(own.pid, own.start_ticks)}"
