"""Processes, signals, sockets and clocks of a machine: all that survey and tidy ask of it, besides its files."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rbee_remote.protocol import ErrorCode, RemoteError


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it is at one moment. pid with start_ticks names it on this boot; see `identity`.

    parent, group, session: pids. state: a letter of proc(5): T stopped, Z zombie. age_s: since its start. rss: bytes.
    argv: its words, empty for a zombie; bytes that are no UTF-8 as `os.fsdecode` has them.
    """

    pid: int
    start_ticks: int
    uid: int
    parent: int = 1
    group: int = 0
    session: int = 0
    state: str = "S"
    age_s: float = 0.0
    rss: int = 0
    argv: tuple[str, ...] = ()

    @property
    def name(self) -> tuple[int, int]:
        return self.pid, self.start_ticks

    @property
    def runs(self) -> bool:
        """False for a zombie: its memory is free, only its parent has not yet asked how it ended."""
        return self.state not in ("Z", "X")


class System(Protocol):
    """One machine, seen by one user. None of this raises for a process that ends meanwhile."""

    def boot_id(self) -> str: ...

    def host(self) -> str: ...

    def uid(self) -> int: ...

    def clock(self) -> float:
        """Unix seconds; may jump."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    def sleep(self, seconds: float) -> None: ...

    def processes(self) -> Sequence[Process]:
        """All that this user can see, without the one that asks."""

    def find(self, pid: int) -> Process | None:
        """The process that has this pid now."""

    def is_contained(self, pid: int) -> bool:
        """Whether it runs in a container on this machine, where a path is another file and a pid another process."""

    def signal(self, process: Process, number: int) -> bool:
        """Send a signal to this very process; False when it is gone (another may have its pid), or is not ours."""

    def ask(self, sockets: Sequence[str], timeout_s: float) -> Mapping[str, dict[str, Any] | None]:
        """What each socket answers to GET /v1/health, all asked at once; None for no answer in time."""

    def tell(self, socket: str, target: str, body: dict[str, Any], timeout_s: float) -> None:
        """POST to a socket; whether that helps is seen in the process."""

    def mentions(self, roots: Sequence[str]) -> Sequence[tuple[int, str]]:
        """(pid, path) for each path below one of the folders that a process names in its command line, has open or
        mapped, or runs from; without the process that asks. A path is as the process has it, links resolved or not."""

    def gpu_pids(self) -> frozenset[int]:
        """Processes that hold memory of an NVIDIA GPU."""


def this_system() -> System:
    """The machine that this runs on.

    Raises RemoteError NODE_UNSUPPORTED where there is no /proc, and no psutil in its place.
    """
    if platform.system() == "Linux":
        from rbee_remote.system.linux import LinuxSystem

        return LinuxSystem()
    try:
        from rbee_remote.system.with_psutil import PsutilSystem
    except ImportError as error:
        raise RemoteError(
            ErrorCode.NODE_UNSUPPORTED,
            "processes cannot be listed here without rbee's runtime",
            hint="`rbee nodes check NODE`, or any `rbee infer`, puts it there",
        ) from error
    return PsutilSystem()
